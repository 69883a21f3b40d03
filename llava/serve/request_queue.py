"""Requests between an event loop and an engine: a bounded queue in, threads that read, events out.

An engine's streams block whoever reads them, so each running answer has a thread; how many run and how many
wait is bounded, and one more is refused at once. A request's reader learns everything by one queue of events:
pieces of text, errors, that time is up, that its client has left. Ending the reading ends the answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava.errors import AnswerTimeoutError, ConfigError, ServerBusyError

if TYPE_CHECKING:
    from llava.engine.protocol import AnswerStream, Engine
    from llava.engine.request import Answer, Request


class ClientGoneError(Exception):
    """Nobody reads the answer any more."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How much one model takes on."""

    max_running: int = 32
    """Answers that the engine is given at the same time; several choices count each."""
    max_waiting: int = 64
    """Requests that wait for a place; one more is answered 429."""
    answer_timeout_s: float = 600.0
    """From the arrival of a request to the end of its answer."""

    def __post_init__(self) -> None:
        for name, low in (("max_running", 1), ("max_waiting", 0), ("answer_timeout_s", 0.001)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", remedy=f"It must be at least {low}.")


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to one of a request's answers; exactly one of the three is set."""

    index: int
    """Which of the choices."""
    piece: str | None = None
    answer: Answer | None = None
    """It is complete."""
    error: Exception | None = None


class RequestQueue:
    """The requests of one engine. Of the event loop's thread, but for what runs in the pool."""

    def __init__(self, engine: Engine, options: QueueOptions | None = None) -> None:
        self.engine = engine
        self.options = options or QueueOptions()
        self.num_running = 0
        """Answers that have a thread."""
        self._waiting: deque[_Job] = deque()
        self._pool = ThreadPoolExecutor(self.options.max_running, thread_name_prefix="llava-answer")

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @asynccontextmanager
    async def events(
        self,
        prepare: Callable[[], Request],
        *,
        num_choices: int = 1,
        wants_pieces: bool = True,
        until_gone: Callable[[], object] | None = None,
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Yield the events of a request's answers, until each is complete; leaving the block ends them.

        prepare: makes the request, in a thread: it may decode and fetch pictures. wants_pieces: where not,
        only the first piece of each answer is told, for the sake of its time. until_gone: a coroutine
        function that returns when the client has left, after which reading raises ClientGoneError.
        Raises ServerBusyError at once, and AnswerTimeoutError to the reader, as well as what goes wrong.
        """
        if num_choices > self.options.max_running:
            raise ConfigError(
                f"n is {num_choices}",
                remedy=f"This server answers at most {self.options.max_running} at once.",
            )
        job = _Job(self, prepare, num_choices, wants_pieces=wants_pieces)
        self._admit(job)
        watch = asyncio.ensure_future(_watch(job, until_gone)) if until_gone is not None else None
        timeout_s = self.options.answer_timeout_s
        too_late = AnswerTimeoutError(
            f"the answer was not complete after {timeout_s:g} seconds", remedy="Ask for fewer tokens."
        )
        timer = asyncio.get_running_loop().call_later(timeout_s, job.interrupt, too_late)
        try:
            yield job.read()
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()
            job.cancel()

    def close(self) -> None:
        """End the threads, once their answers have ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, job: _Job) -> None:
        if not self._waiting and self._has_place_for(job):
            self._start(job)
        elif len(self._waiting) >= self.options.max_waiting:
            raise ServerBusyError(f"{len(self._waiting)} requests are waiting", remedy="Try again later.")
        else:
            self._waiting.append(job)

    def _has_place_for(self, job: _Job) -> bool:
        return self.num_running + job.num_choices <= self.options.max_running

    def _start(self, job: _Job) -> None:
        self.num_running += job.num_choices
        self._pool.submit(job.run)

    def leave(self, job: _Job) -> None:
        """A waiting request is not wanted any more."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._start_next()

    def give_back(self, num_places: int) -> None:
        """Threads are free again."""
        self.num_running -= num_places
        self._start_next()

    def _start_next(self) -> None:
        while self._waiting and self._has_place_for(self._waiting[0]):
            self._start(self._waiting.popleft())


class _Job:
    """One request on its way."""

    def __init__(
        self, owner: RequestQueue, prepare: Callable[[], Request], num_choices: int, *, wants_pieces: bool
    ) -> None:
        self.num_choices = num_choices
        self._wants_pieces = wants_pieces
        self._owner = owner
        self._prepare = prepare
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._lock = threading.Lock()
        self._interruption: Exception | None = None
        self._cancelled = threading.Event()
        self._streams: list[AnswerStream] = []

    # -- for the reader, in the event loop --

    async def read(self) -> AsyncIterator[Event]:
        num_open = self.num_choices
        while num_open:
            event = await self._events.get()
            if self._interruption is not None:
                raise self._interruption
            if event.error is not None:
                raise event.error
            num_open -= event.answer is not None
            yield event

    def interrupt(self, error: Exception) -> None:
        """Let the reader get `error` next, whatever else there is to read."""
        self._interruption = error
        self._events.put_nowait(Event(0, error=error))
        self.cancel()

    def cancel(self) -> None:
        self._owner.leave(self)
        self._cancelled.set()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()

    # -- in threads of the pool --

    def run(self) -> None:
        """Make the request, begin its answers, and read the first; the others get threads of their own."""
        num_places = self.num_choices
        try:
            streams = self._open()
            for index, stream in enumerate(streams[1:], 1):
                self._owner._pool.submit(self._read_in_thread, index, stream)
                num_places -= 1
            self._read_stream(0, streams[0])
        except Exception as error:
            # Whatever it is, it is the reader's: nobody else looks at a thread of the pool.
            self._tell(Event(0, error=error))
        finally:
            self._give_back(num_places)

    def _open(self) -> list[AnswerStream]:
        if self._cancelled.is_set():
            raise ClientGoneError
        streams = self._owner.engine.choices(self._prepare(), self.num_choices)
        with self._lock:
            self._streams = streams
        if self._cancelled.is_set():
            for stream in streams:
                stream.cancel()
        return streams

    def _read_in_thread(self, index: int, stream: AnswerStream) -> None:
        try:
            self._read_stream(index, stream)
        except Exception as error:
            self._tell(Event(index, error=error))
        finally:
            self._give_back(1)

    def _read_stream(self, index: int, stream: AnswerStream) -> None:
        is_told = False
        for piece in stream:
            if self._wants_pieces or not is_told:
                self._tell(Event(index, piece=piece))
                is_told = True
        self._tell(Event(index, answer=stream.answer))

    def _tell(self, event: Event) -> None:
        self._call(self._events.put_nowait, event)

    def _give_back(self, num_places: int) -> None:
        self._call(self._owner.give_back, num_places)

    def _call(self, function: Callable[..., object], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            return  # the event loop has ended, and every reader with it


async def _watch(job: _Job, until_gone: Callable[[], object]) -> None:
    await until_gone()  # type: ignore[misc]
    job.interrupt(ClientGoneError())
