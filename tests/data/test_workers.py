"""Worker processes: results in order, no more than asked for ahead, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava.data.workers import ordered_map
from llava.errors import DataError

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def square(number: int) -> int:
    time.sleep(0.02 if number % 2 else 0.0)
    return number * number


def fail_at_three(number: int) -> int:
    assert number != 3, "three"
    return number


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks(num_workers: int) -> None:
    got = ordered_map(square, range(20), num_workers=num_workers, ahead=4)
    assert list(got) == [number * number for number in range(20)]


def test_only_so_many_tasks_are_given_out_ahead() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    running = ordered_map(square, tasks(), num_workers=2, ahead=5)
    assert next(running) == 0
    assert len(taken) == 6
    running.close()


def test_a_worker_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    running = ordered_map(fail_at_three, range(9), num_workers=1, ahead=1)
    with pytest.raises(DataError, match="failed with exit code 1; its message is above"):
        list(running)
    assert "AssertionError: three" in capfd.readouterr().err


SCRIPT = """
import os, sys, time
from llava.data.workers import ordered_map

def pid(_):
    return os.getpid()

running = ordered_map(pid, range(1000), num_workers=2, ahead=3)
print(next(running), next(running), flush=True)
if sys.argv[1] == "wait":
    time.sleep(100)
"""


def started(tmp_path: Path, ending: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a process with two workers; returns it and their ids."""
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), ending],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    with process.stdout as stream:
        return process, [int(word) for word in stream.readline().split()]


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie (its new parent may not collect it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(workers: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@on_linux
def test_a_process_that_ends_in_the_middle_takes_its_workers_along(tmp_path: Path) -> None:
    process, workers = started(tmp_path, "end")
    assert len(workers) == 2
    assert process.wait(timeout=60) == 0
    wait_until_gone(workers)


@on_linux
def test_workers_of_a_killed_process_end_too(tmp_path: Path) -> None:
    process, workers = started(tmp_path, "wait")
    assert all(is_running(worker) for worker in workers)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    wait_until_gone(workers)
