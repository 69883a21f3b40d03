"""The thread that drives a scheduler: whoever asks leaves a request here and reads what comes of it.

The thread is there while there is work, and a little longer. What breaks in it is told to all who wait.
"""

from __future__ import annotations

import threading
from typing import Literal

from llava.engine.generation import Generation
from llava.engine.protocol import Statistics
from llava.engine.scheduler import Scheduler
from llava.errors import EngineBusyError, EngineError

_IDLE_S = 5.0
"""How long the thread outlives its work: starting one costs torch a new pool of threads."""


class EngineLoop:
    """Runs a scheduler's steps in a thread of its own."""

    def __init__(self, scheduler: Scheduler, *, max_waiting: int) -> None:
        """No thread yet."""
        self._scheduler = scheduler
        self._max_waiting = max_waiting
        self._condition = threading.Condition()
        self._arrivals: list[Generation] = []
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def add(self, generation: Generation) -> None:
        """Hand over a request; raises EngineBusyError when too many wait, EngineError after `close`."""
        with self._condition:
            self._check_open()
            num_waiting = len(self._arrivals) + self._scheduler.num_waiting
            if num_waiting >= self._max_waiting:
                raise EngineBusyError(f"{num_waiting} requests are waiting", remedy="Try again later.")
            self._arrivals.append(generation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llava-engine", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def wake(self) -> None:
        """Let the thread look at its requests again."""
        with self._condition:
            self._condition.notify_all()

    def statistics(self) -> Statistics:
        """Return what the scheduler counted so far."""
        return self._scheduler.statistics()

    def close(self) -> None:
        """End what runs and wait for the thread; later requests are refused."""
        with self._condition:
            self._is_closed = True
            thread = self._thread
            self._condition.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine was closed", remedy="Load it again.")

    def _run(self) -> None:
        while (state := self._take_in()) == "work":
            try:
                self._scheduler.step()
            except Exception as error:
                # Nobody reads a thread's traceback: those who wait for answers get the error, whatever it is.
                self._scheduler.fail_all(error)
        if state == "closed":
            self._scheduler.fail_all(EngineError("the engine was closed", remedy="Load it again."))

    def _take_in(self) -> Literal["work", "idle", "closed"]:
        """Wait for work and hand it to the scheduler; "idle" when none came for a while."""
        with self._condition:
            while not (self._arrivals or self._scheduler.has_work or self._is_closed):
                if not self._condition.wait(_IDLE_S) and not self._arrivals:
                    self._thread = None
                    return "idle"
            for generation in self._arrivals:
                self._scheduler.add(generation)
            self._arrivals.clear()
            return "closed" if self._is_closed else "work"
