"""A judge with a memory: what it said once is never asked again, and what it costs is bounded.

requests -> store -> [backend, within the budget] -> store -> what the reply means, or None
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from llava.command import note
from llava.errors import RemoteError, UsageError
from llava.eval.judge.backends import Backend
from llava.eval.judge.cost import Spending
from llava.eval.judge.replies import JudgeRequest, ReplyStore

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_CONCURRENCY = 8
DEFAULT_ATTEMPTS = 3
MAX_FAILURES_IN_A_ROW = 3
"""After so many requests that failed for good, nothing else is asked."""


@dataclass(frozen=True, slots=True)
class Verdict(Generic[T]):
    """The last reply to a request that may have been asked several times, and what it means."""

    text: str
    value: T | None
    """None where no attempt could be read."""
    num_attempts: int


class Judge:
    """Asks a backend what the store does not know. May be used from several threads."""

    def __init__(
        self,
        model: str,
        backend: Backend | None,
        store: ReplyStore,
        *,
        spending: Spending | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        attempts: int = DEFAULT_ATTEMPTS,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Let `backend` judge under the name `model`; without one, only the store answers (replay).

        attempts: how often a request is asked whose reply cannot be read. extra: fields of every request.
        """
        if concurrency < 1 or attempts < 1:
            raise UsageError("--concurrency and --attempts must be at least 1")
        self.model = model
        self.concurrency = concurrency
        self.attempts = attempts
        self.spending = spending or Spending()
        self.num_replayed = 0
        self._backend = backend
        self._store = store
        self._extra = extra or {}

    def ask(self, request: JudgeRequest) -> str:
        """Return the reply to a request, from the store if it is there.

        Raises RemoteError when retries are used up, UsageError when the budget is, or when nothing is to
        be asked and the store does not know.
        """
        request = replace(request, extra=self._extra)
        key = request.key(self.model)
        reply = self._store.get(key)
        if reply is not None:
            self.num_replayed += 1
            return reply.text
        if self._backend is None:
            raise UsageError(
                f"the store has no reply of {self.model} to this request",
                remedy="Leave --replay out to ask for it, or name the model that was asked.",
            )
        reserved = self.spending.reserve(request)
        try:
            reply = self._backend.complete(request.body(self.model), seed=int(key[:8], 16))
        finally:
            self.spending.settle(reserved, request, reply)
        self._store.put(request, self.model, reply)
        return reply.text

    def ask_until(self, request: JudgeRequest, read: Callable[[str], T | None]) -> Verdict[T]:
        """Ask until a reply can be read, at most `attempts` times."""
        text, value, number = "", None, 0
        while value is None and number < self.attempts:
            sample = request.sample if number == 0 else f"{request.sample} again {number}"
            text = self.ask(replace(request, sample=sample))
            value, number = read(text), number + 1
        return Verdict(text, value, number)

    def announce(self, requests: Sequence[JudgeRequest]) -> None:
        """Say what requests will cost at most.

        Raises UsageError when that is over the cap, or when some are to be replayed and not in the store.
        """
        full = [replace(request, extra=self._extra) for request in requests]
        unknown = [request for request in full if self._store.get(request.key(self.model)) is None]
        if not unknown:
            return
        if self._backend is None:
            raise UsageError(
                f"the store has no reply of {self.model} to {len(unknown)} of {len(requests)} requests",
                remedy="Leave --replay out to ask for them, or name the model that was asked.",
            )
        note(f"note: {self.spending.estimate(unknown)}")

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R | RemoteError]]:
        """Yield each item with what `work` made of it, in order, `concurrency` at a time.

        An item whose request failed for good comes with its error; several of them in a row are raised, as
        is every other error. What was asked is in the store either way.
        """
        in_a_row = 0
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        upcoming, running = iter(items), deque[tuple[T, Future[R]]]()
        try:
            while True:
                # Some are finished and wait for a slow one before them: what is under way stays full.
                while len(running) < 4 * self.concurrency and (item := next(upcoming, None)) is not None:
                    running.append((item, pool.submit(work, item)))
                if not running:
                    return
                item, future = running.popleft()
                try:
                    result: R | RemoteError = future.result()
                    in_a_row = 0
                except RemoteError as error:
                    in_a_row += 1
                    if in_a_row >= min(MAX_FAILURES_IN_A_ROW, len(items)):
                        raise
                    result = error
                yield item, result
        finally:
            pool.shutdown(cancel_futures=True)

    def describe(self) -> dict[str, object]:
        """Return what was asked and spent, as JSON values."""
        spending = self.spending
        return {
            "model": self.model,
            "num_requests": spending.num_requests,
            "num_replayed": self.num_replayed,
            "num_prompt_tokens": spending.num_prompt_tokens,
            "num_new_tokens": spending.num_new_tokens,
            "cost": spending.cost,
        }

    def close(self) -> None:
        """Let backend and store go."""
        if self._backend is not None:
            self._backend.close()
        self._store.close()
