"""An engine that asks an HTTP server: what `remote` and `llama_cpp` have in common.

    submit -> JSON body (here, at once) -> events -> deltas -> PushedStream -> reader

How a request is written and an event read is each engine's own affair.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from llava.engine.client_engine import ClientEngine
from llava.engine.counting import Counter
from llava.engine.http_endpoint import Endpoint, HttpOptions
from llava.engine.http_faults import Fault
from llava.engine.pushed_stream import Counts, PushedStream
from llava.engine.request import FinishReason, Request, TokenLogprob
from llava.errors import EngineBusyError, ImageLimitError, PlaceholderError
from llava.templates import Picture


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to an answer."""

    text: str = ""
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    counts: Counts | None = None
    is_last: bool = False
    """Whether nothing follows."""


class Written(NamedTuple):
    """A request as it is sent."""

    path: str
    body: bytes
    """JSON."""
    image_s: float = 0.0
    """Seconds that the vision tower took."""
    num_cached_images: int = 0
    """Pictures whose features were remembered."""


class HttpEngine(ClientEngine):
    """Answers requests by a server's streaming API."""

    def __init__(self, endpoint: Endpoint, *, options: HttpOptions) -> None:
        """Ask `endpoint`, within the limits of `options`."""
        super().__init__("llava-http-engine")
        self._options = options
        self._endpoint = endpoint
        self._slots = asyncio.Semaphore(options.max_concurrency)

    @abstractmethod
    def _written(self, request: Request) -> Written:
        """Write a request; raises what is wrong with it."""

    @abstractmethod
    def _read(self, data: str) -> Delta:
        """Return what an event says; raises Fault for nonsense and errors."""

    @property
    def _local_stop(self) -> tuple[str, ...]:
        """Stop strings besides the request's, which the server may not know."""
        return ()

    def submit(self, request: Request) -> PushedStream:
        """Write the request now and send it as soon as there is room.

        Raises what is wrong with the request, and EngineBusyError when too many wait already.
        """
        start = perf_counter()
        self._refuse_if_closed()
        self._refuse_if_full()
        written = self._written(request)
        sampling = request.sampling
        stream = PushedStream(
            stop=(*self._local_stop, *sampling.stop),
            num_logprobs=sampling.logprobs,
            start=start,
            image_s=written.image_s,
        )
        place = _Place(self._counter)
        self._counter.add(num_images=len(request.images), num_cached_images=written.num_cached_images)
        self._carry(stream, self._answer(stream, written, place), when_over=place.leave)
        return stream

    def close(self) -> None:
        """End what runs; later requests are refused. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.cancel_all()
        self._loop.run(self._endpoint.close())
        self._loop.close()

    async def _answer(self, stream: PushedStream, written: Written, place: _Place) -> None:
        """Carry one request from beginning to end; what it raises ends the stream."""
        async with self._slots:
            if not place.leave():
                return  # cancelled while it waited
            self._counter.add(num_running=1)
            stream.begin()
            try:
                async with aclosing(self._endpoint.events(written.path, written.body)) as events:
                    reason = await self._pass_on(events, stream)
            except Fault as fault:
                raise self._endpoint.error(written.path, fault) from None
            finally:
                self._counter.add(num_running=-1)
        # Only now: who waits for the end finds the counts right and the connection free.
        if reason is not None:
            stream.finish(reason)

    async def _pass_on(self, events: AsyncIterator[str], stream: PushedStream) -> FinishReason | None:
        """Push what the events say; returns the finish reason, None when the reader wants no more."""
        reason: FinishReason | None = None
        async for data in events:
            delta = self._read(data)
            if delta.counts is not None:
                stream.count(delta.counts)
            has_news = bool(delta.text or delta.num_tokens)
            if has_news and not stream.push(delta.text, num_tokens=delta.num_tokens, logprobs=delta.logprobs):
                return None
            reason = delta.finish_reason or reason
            if delta.is_last:
                break
        if reason is None:
            raise Fault(
                "breaks off in the middle of an answer",
                "Look into the server's log.",
                said="the stream ended without a finish reason",
            )
        return reason

    def _refuse_if_full(self) -> None:
        now, options = self._counter.now, self._options
        if now.num_waiting + now.num_running >= options.max_concurrency + options.max_waiting:
            raise EngineBusyError(
                f"{now.num_running} requests are under way and {now.num_waiting} wait",
                remedy="Try again later, or raise max_waiting.",
            )


class _Place:
    """A place in the waiting line, which is left once: to be worked on, or because it is over."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._left = threading.Lock()
        counter.add(num_waiting=1)

    def leave(self) -> bool:
        """Leave the line; returns False when that was done before."""
        if not self._left.acquire(blocking=False):
            return False
        self._counter.add(num_waiting=-1)
        return True


def check_pictures(request: Request, *, max_images: int) -> None:
    """Raise PlaceholderError unless each picture has its place, ImageLimitError when there are too many."""
    num_places = sum(isinstance(part, Picture) for turn in request.turns for part in turn.content)
    if num_places != len(request.images):
        raise PlaceholderError(
            f"the dialogue has {num_places} place(s) for {len(request.images)} picture(s)",
            remedy="Give one place per picture.",
        )
    if num_places > max_images:
        raise ImageLimitError(f"{num_places} pictures in one request", remedy=f"Give at most {max_images}.")
