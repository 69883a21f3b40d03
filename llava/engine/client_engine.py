"""An engine that is a client of what computes: a server, a cluster.

One thread with an asyncio loop carries all requests. How one is carried is each engine's own affair; that its
stream ends, is counted and can be cancelled is decided here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from llava.engine.counting import Counter
from llava.engine.loop_thread import LoopThread
from llava.engine.protocol import DEFAULT_CONCURRENCY, Engine, OnAnswer, Statistics
from llava.engine.pushed_stream import PushedStream
from llava.engine.request import Answer, Request
from llava.engine.windowed import answer_all
from llava.errors import EngineError


class ClientEngine(Engine):
    """Carries requests to somewhere else."""

    def __init__(self, thread_name: str) -> None:
        """Start the thread."""
        self._loop = LoopThread(thread_name)
        self._counter = Counter()
        self._is_closed = False

    @abstractmethod
    def submit(self, request: Request) -> PushedStream:
        """Take a request, as `Engine.submit` says; makes its stream and hands it to `_carry`."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = DEFAULT_CONCURRENCY,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer]:
        """Answer many requests, at most `batch_size` of them at a time, and return the answers in order.

        `on_answer(index, answer)` is called as each answer is finished, in the caller's thread. The first
        error is raised as soon as it is known.
        """
        return answer_all(self.submit, requests, batch_size=batch_size, on_answer=on_answer)

    def statistics(self) -> Statistics:
        """Return what was done so far; may be called at any time, from any thread."""
        return self._counter.now

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EngineError("the engine was closed", remedy="Load it again.")

    def _carry(
        self,
        stream: PushedStream,
        work: Coroutine[Any, Any, None],
        *,
        when_over: Callable[[], object] | None = None,
    ) -> None:
        """Run `work`, which fills a stream; what it raises ends the stream, whose reader can end the work.

        when_over: called once the work has ended, before the stream is ended for it.
        """
        stream.when_ended(self._count_end)
        future = self._loop.start(work)

        def settle(done: Future[None]) -> None:
            if when_over is not None:
                when_over()
            if done.cancelled():
                stream.fail(EngineError("the engine was closed before the answer was finished"))
            elif (error := done.exception()) is not None:
                stream.fail(error)

        future.add_done_callback(settle)
        stream.when_ended(lambda ended: _cancel_with_reader(ended, future))

    def _count_end(self, stream: PushedStream) -> None:
        if stream.error is not None:
            self._counter.add(num_failed=1)
            return
        answer = stream.answer
        is_cancelled = answer.finish_reason == "cancelled"
        self._counter.add(
            num_cancelled=int(is_cancelled),
            num_finished=int(not is_cancelled),
            num_prompt_tokens=answer.num_prompt_tokens,
            num_cached_tokens=answer.num_cached_tokens,
            num_new_tokens=answer.num_new_tokens,
        )


def _cancel_with_reader(stream: PushedStream, future: Future[None]) -> None:
    """End the work for a stream that its reader has cancelled."""
    if stream.error is None and stream.answer.finish_reason == "cancelled":
        future.cancel()
