"""A stream whose answer is made elsewhere: some other thread pushes pieces in, the reader takes them out.

For engines that do not decode themselves (an endpoint, llama.cpp). Text passes a stop filter on the way, so
that a stop string never leaks whatever the other side does with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import perf_counter

from llava.engine.detokenize import StopFilter
from llava.engine.request import Answer, FinishReason, Timing, TokenLogprob


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tokens an answer took, as the side that made it says; None where it does not say."""

    num_prompt_tokens: int | None = None
    num_new_tokens: int | None = None
    num_cached_tokens: int | None = None

    def or_else(self, other: Counts) -> Counts:
        """Return the counts that are known, those of `other` in the places of the rest."""
        return Counts(
            _first(self.num_prompt_tokens, other.num_prompt_tokens),
            _first(self.num_new_tokens, other.num_new_tokens),
            _first(self.num_cached_tokens, other.num_cached_tokens),
        )


def _first(value: int | None, other: int | None) -> int | None:
    return other if value is None else value


class PushedStream:
    """An AnswerStream with a second face, for the thread that makes the answer."""

    def __init__(
        self,
        *,
        stop: Sequence[str] = (),
        num_logprobs: int | None = None,
        start: float | None = None,
        image_s: float = 0.0,
    ) -> None:
        """Begin an answer that was asked for at `start`, by time.perf_counter; None is now.

        num_logprobs: alternatives to keep beside the log-probability of each token; None keeps neither.
        """
        self._lock = threading.Lock()
        self._pieces: SimpleQueue[str | None] = SimpleQueue()  # None is the end
        self._filter = StopFilter(stop)
        self._text: list[str] = []
        self._num_logprobs = num_logprobs
        self._logprobs: list[TokenLogprob] = []
        self._counts = Counts()
        self._num_pushed = 0
        self._start = perf_counter() if start is None else start
        self._image_s = image_s
        self._submitted_at = self._begun_at = perf_counter()
        self._first_token_at: float | None = None
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._when_ended: list[Callable[[PushedStream], None]] = []

    # -- for the side that makes the answer; its calls have no effect once the stream has ended --

    def begin(self) -> None:
        """Say that waiting is over and work has begun."""
        self._begun_at = perf_counter()

    def push(self, text: str, *, num_tokens: int = 1, logprobs: Sequence[TokenLogprob] = ()) -> bool:
        """Add text; returns whether more is wanted: False once a stop string came, or after `cancel`."""
        with self._lock:
            if self.has_ended:
                return False
            if self._first_token_at is None and num_tokens:
                self._first_token_at = perf_counter()
            self._num_pushed += num_tokens
            if self._num_logprobs is not None:
                # A server may tell more than it was asked for.
                num_top = self._num_logprobs
                self._logprobs += [replace(token, top=token.top[:num_top]) for token in logprobs]
            self._emit(self._filter.push(text))
            if not self._filter.is_stopped:
                return True
            self._end("stop")
        self._tell()
        return False

    def count(self, counts: Counts) -> None:
        """Note what the other side says about numbers of tokens; the last word on each counts."""
        with self._lock:
            self._counts = counts.or_else(self._counts)

    def count_image(self, seconds: float) -> None:
        """Note how long the vision tower took where the answer is made."""
        self._image_s = seconds

    def finish(self, reason: FinishReason) -> None:
        """End the answer."""
        with self._lock:
            if self.has_ended:
                return
            self._end(reason)
        self._tell()

    def fail(self, error: BaseException) -> None:
        """End the answer with an error, which is raised to the reader."""
        with self._lock:
            if self.has_ended:
                return
            self._error = error
            self._pieces.put(None)
        self._tell()

    def when_ended(self, callback: Callable[[PushedStream], None]) -> None:
        """Call `callback` once at the end, from whichever thread brings it; at once if it is over."""
        with self._lock:
            if not self.has_ended:
                self._when_ended.append(callback)
                return
        callback(self)

    # -- for the reader --

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text; a reader that stops early cancels the answer."""
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        except GeneratorExit:
            self.cancel()
            raise
        self._pieces.put(None)  # for whoever iterates again
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End the answer here; `.answer` then has what was decoded so far."""
        self.finish("cancelled")

    @property
    def has_ended(self) -> bool:
        """Whether there is an answer or an error."""
        return self._answer is not None or self._error is not None

    @property
    def error(self) -> BaseException | None:
        """What went wrong, if something did."""
        return self._error

    @property
    def answer(self) -> Answer:
        """The answer; cancels what has not ended. Raises what went wrong."""
        self.cancel()
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "a stream that has ended without answer or error"
        return self._answer

    def _emit(self, piece: str) -> None:
        if piece:
            self._text.append(piece)
            self._pieces.put(piece)

    def _end(self, reason: FinishReason) -> None:
        """Put the answer together; the lock is held."""
        self._emit(self._filter.flush())
        now = perf_counter()
        first_at = now if self._first_token_at is None else self._first_token_at
        counts = self._counts.or_else(Counts(0, self._num_pushed, 0))
        self._answer = Answer(
            text="".join(self._text).strip(),
            finish_reason=reason,
            num_prompt_tokens=counts.num_prompt_tokens or 0,
            num_new_tokens=counts.num_new_tokens or 0,
            timing=Timing(
                first_token_s=first_at - self._start,
                total_s=now - self._start,
                queued_s=max(0.0, min(self._begun_at, first_at) - self._submitted_at),
                image_s=self._image_s,
            ),
            num_cached_tokens=counts.num_cached_tokens or 0,
            logprobs=None if self._num_logprobs is None else tuple(self._logprobs),
        )
        self._pieces.put(None)

    def _tell(self) -> None:
        callbacks, self._when_ended = self._when_ended, []
        for callback in callbacks:
            callback(self)
