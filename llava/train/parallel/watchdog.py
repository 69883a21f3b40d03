"""Ends a process that waits for other ranks longer than it may.

Collectives have timeouts of their own, which raise where the backend can (gloo) or abort (NCCL); a rank that
hangs elsewhere inside one is only seen from outside. So a thread watches how long this process has been in
the same operation. On expiry it says which, writes what every thread does, and ends the process with
EXIT_HUNG; torchrun, or srun with --kill-on-bad-exit, then ends the others, and ranks without such a parent
find their connections closed.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_HUNG = 75
"""EX_TEMPFAIL of sysexits.h: worth another try."""


class Watchdog:
    """Watches one operation at a time, over and over."""

    def __init__(self, timeout_s: float, *, rank: int, end: Callable[[int], None] = os._exit) -> None:
        """Start the thread. end: what ends the process; `os._exit`, since nothing gentler is sure to work."""
        self._timeout_s = timeout_s
        self._rank = rank
        self._end = end
        self._doing: tuple[str, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, doing: str) -> Iterator[None]:
        """Run an operation that may not take longer than the timeout; inner ones go on the outer's."""
        outer = self._doing
        if outer is None:
            self._doing = (doing, time.monotonic() + self._timeout_s)
        try:
            yield
        finally:
            self._doing = outer

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 10)):
            doing = self._doing
            if doing is not None and time.monotonic() > doing[1]:
                self._report(doing[0])
                self._end(EXIT_HUNG)
                return

    def _report(self, doing: str) -> None:
        sys.stderr.write(
            f"error[rank]: rank {self._rank} was in {doing} for {self._timeout_s:.0f} s, waiting for other "
            "ranks. One of them died, hangs or does something else; look for the first error of theirs, and "
            "run the command again to resume. What every thread does:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
