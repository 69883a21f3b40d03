"""An engine without a model for servers: it answers in pieces, waits, fails or never ends, as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from llava.engine.protocol import DEFAULT_CONCURRENCY, Engine, OnAnswer, Statistics
from llava.engine.request import Answer, Choice, FinishReason, Request, Timing, TokenLogprob
from llava.templates import ChatTemplate, get_template
from tests.serve.fakes import echo

NUM_PROMPT_TOKENS = 7
NUM_CACHED_TOKENS = 2


class EchoStream:
    """The pieces of one answer."""

    def __init__(self, owner: EchoEngine, request: Request) -> None:
        self._owner = owner
        self._request = request
        self._given: list[str] = []
        self._reason: FinishReason = "cancelled"
        self.is_cancelled = threading.Event()

    def __iter__(self) -> Iterator[str]:
        self._owner.gate.wait(20)
        for piece in self._owner.pieces(self._request):
            if self.is_cancelled.is_set() or len(self._given) >= self._request.sampling.max_new_tokens:
                break
            self._given.append(piece)
            yield piece
        else:
            self._reason = "stop"
        if self._reason == "cancelled" and not self.is_cancelled.is_set():
            self._reason = "length"
        self._owner.note_end(self._reason)

    def cancel(self) -> None:
        self.is_cancelled.set()
        self._owner.num_cancel_calls += 1

    @property
    def answer(self) -> Answer:
        logprobs = None
        if self._request.sampling.logprobs is not None:
            top = tuple(Choice(n, str(n), -1.0 - n) for n in range(self._request.sampling.logprobs))
            logprobs = tuple(TokenLogprob(Choice(9, piece, -0.5), top) for piece in self._given)
        return Answer(
            "".join(self._given).strip(),
            self._reason,
            NUM_PROMPT_TOKENS,
            len(self._given),
            Timing(first_token_s=0.5, total_s=1.5),
            num_cached_tokens=NUM_CACHED_TOKENS,
            logprobs=logprobs,
        )


class EchoEngine(Engine):
    """Remembers its requests and how their answers ended."""

    def __init__(self, pieces: Callable[[Request], Iterator[str]] | None = None) -> None:
        self.pieces = pieces or (lambda request: iter([" ", *echo(request), " "]))
        self.gate = threading.Event()
        """Answers begin when it is set."""
        self.gate.set()
        self.error: Exception | None = None
        """Raised by the next `submit`."""
        self.requests: list[Request] = []
        self.ends: list[str] = []
        self.num_cancel_calls = 0
        self.is_closed = False

    def note_end(self, reason: str) -> None:
        self.ends.append(reason)

    @property
    def name(self) -> str:
        return "echo"

    @property
    def template(self) -> ChatTemplate:
        return get_template("vicuna_v1")

    def submit(self, request: Request) -> EchoStream:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.requests.append(request)
        return EchoStream(self, request)

    def statistics(self) -> Statistics:
        return Statistics(num_finished=len(self.ends), num_images=3, num_cached_images=1, cache_bytes=5)

    def close(self) -> None:
        self.is_closed = True

    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = DEFAULT_CONCURRENCY,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer]:
        raise NotImplementedError("servers stream")


def endless(delay_s: float = 0.005, piece: str = "word ") -> Callable[[Request], Iterator[str]]:
    """Return pieces that never end."""

    def pieces(_: Request) -> Iterator[str]:
        while True:
            time.sleep(delay_s)
            yield piece

    return pieces


def failing_after(*pieces: str, error: Exception) -> Callable[[Request], Iterator[str]]:
    """Return some pieces and then an error."""

    def give(_: Request) -> Iterator[str]:
        yield from pieces
        raise error

    return give
