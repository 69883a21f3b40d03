"""Clients in a loop: each sends its next request when it has read its last answer to the end.

Times are a client's own, from submitting to the first and last piece of text; the rate of decoding is the
engine's, since pieces need not be tokens. What goes wrong with a request is kept beside the others.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from statistics import fmean, median
from time import perf_counter

import numpy as np

from llava.engine.protocol import Engine
from llava.engine.request import Answer, Request
from llava.errors import LlavaError


@dataclass(frozen=True, slots=True)
class Sample:
    """One request."""

    first_s: float = 0.0
    """Until the first piece of text; until the end where there was none."""
    total_s: float = 0.0
    answer: Answer | None = None
    error: str = ""
    """What went wrong."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the slow end of some times, in seconds."""

    p50_s: float
    p95_s: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        """Return the percentiles; None of nothing."""
        if not seconds:
            return None
        low, high = np.percentile(seconds, (50, 95))
        return cls(float(low), float(high))


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured at one concurrency."""

    concurrency: int
    num_requests: int
    num_failed: int
    errors: dict[str, int]
    """What went wrong, and how often."""
    duration_s: float
    requests_per_s: float
    tokens_per_s: float
    """New tokens of all clients together."""
    decode_tokens_per_s: float | None
    """Of one stream after its first token, the median; None where no answer had two tokens."""
    first_token: Spread | None
    total: Spread | None
    num_prompt_tokens: float
    """Mean of a request; 0 where the engine does not say."""
    num_cached_tokens: float
    num_new_tokens: float


@dataclass(slots=True)
class Clients:
    """Sends requests to an engine."""

    engine: Engine
    make_request: Callable[[int], Request]
    on_request: Callable[[], object] = lambda: None
    """Called after each request, from any thread."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _is_stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, concurrency: int, num_requests: int) -> Level:
        """Measure `num_requests` requests of `concurrency` clients, after one of each that does not count."""
        numbers = [next(self._numbers) for _ in range(concurrency + num_requests)]
        requests = [self.make_request(number) for number in numbers]
        self._answer_all(requests[:concurrency], concurrency)
        begin = perf_counter()
        samples = self._answer_all(requests[concurrency:], concurrency)
        return summarise(samples, concurrency, perf_counter() - begin)

    def one(self) -> Sample:
        """Answer one request."""
        return self._measure(self.make_request(next(self._numbers)))

    def _answer_all(self, requests: Sequence[Request], concurrency: int) -> list[Sample]:
        pool = ThreadPoolExecutor(concurrency)
        try:
            futures = [pool.submit(self._measure, request) for request in requests]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what is no LlavaError
            return [future.result() for future in futures]
        finally:
            # An interruption must not wait for answers that nobody wants any more.
            self._is_stopped.set()
            pool.shutdown(cancel_futures=True)
            self._is_stopped.clear()

    def _measure(self, request: Request) -> Sample:
        begin = perf_counter()
        first_at: float | None = None
        try:
            stream = self.engine.submit(request)
            for _ in stream:
                first_at = perf_counter() if first_at is None else first_at
                if self._is_stopped.is_set():
                    stream.cancel()
            answer = stream.answer
        except LlavaError as error:
            return Sample(error=f"[{error.code}] {error.cause}")
        finally:
            self.on_request()
        end = perf_counter()
        return Sample((end if first_at is None else first_at) - begin, end - begin, answer)


def summarise(samples: Sequence[Sample], concurrency: int, duration_s: float) -> Level:
    """Return what samples of one concurrency, taken within `duration_s`, add up to."""
    good = [(sample, sample.answer) for sample in samples if sample.answer is not None]
    answers = [answer for _, answer in good]
    rates = [answer.timing.tokens_per_second(answer.num_new_tokens) for answer in answers]
    rates = [rate for rate in rates if rate > 0]
    return Level(
        concurrency=concurrency,
        num_requests=len(samples),
        num_failed=len(samples) - len(good),
        errors=dict(Counter(sample.error for sample in samples if sample.error)),
        duration_s=duration_s,
        requests_per_s=len(good) / duration_s,
        tokens_per_s=sum(answer.num_new_tokens for answer in answers) / duration_s,
        decode_tokens_per_s=median(rates) if rates else None,
        first_token=Spread.of([sample.first_s for sample, _ in good]),
        total=Spread.of([sample.total_s for sample, _ in good]),
        num_prompt_tokens=_mean([answer.num_prompt_tokens for answer in answers]),
        num_cached_tokens=_mean([answer.num_cached_tokens for answer in answers]),
        num_new_tokens=_mean([answer.num_new_tokens for answer in answers]),
    )


def _mean(values: Sequence[int]) -> float:
    return fmean(values) if values else 0.0
