"""What happens to a process that waits too long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from llava.train.parallel.watchdog import EXIT_HUNG, Watchdog

HANGING = """
import time
from llava.train.parallel.watchdog import Watchdog

def wait_for_a_peer():
    time.sleep(60)

with Watchdog(0.3, rank=3).watch("backward"):
    wait_for_a_peer()
"""


def test_an_operation_that_hangs_ends_the_process_and_shows_where_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30)
    assert done.returncode == EXIT_HUNG
    assert done.stderr.startswith("error[rank]: rank 3 was in backward for 0 s")
    assert "in wait_for_a_peer" in done.stderr


def test_work_outside_of_operations_takes_as_long_as_it_likes() -> None:
    codes: list[int] = []
    watchdog = Watchdog(0.2, rank=0, end=codes.append)
    for _ in range(3):
        with watchdog.watch("forward"):
            time.sleep(0.1)
    time.sleep(0.4)
    watchdog.close()
    assert codes == []


def test_an_inner_operation_does_not_prolong_the_outer_one() -> None:
    ended = threading.Event()
    watchdog = Watchdog(0.3, rank=0, end=lambda _: ended.set())
    with watchdog.watch("saving"):
        for _ in range(100):
            with watchdog.watch("a sum over ranks"):
                time.sleep(0.02)
            if ended.is_set():
                break
    assert ended.is_set()
    watchdog.close()
