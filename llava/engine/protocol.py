"""The one face of every engine, whatever runs beneath it: terminal, servers and benchmarks know only this.

    submit(request) -> AnswerStream -> pieces of text ... -> Answer

`submit` may be called from many threads at once. What is wrong with a request is raised there; what goes
wrong later is raised to whoever reads the stream. Streaming is the primitive: `ask` and `generate` consume
what `stream` yields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from llava.engine.request import MAX_CHOICES, Answer, Request, SamplingParams
from llava.errors import ConfigError

if TYPE_CHECKING:
    from llava.processing.images import ImageSource
    from llava.templates import ChatTemplate, Turn

OnAnswer = Callable[[int, Answer], None]
DEFAULT_CONCURRENCY = 8


class AnswerStream(Protocol):
    """The pieces of one answer. Stop reading, or call `cancel`, to end it early."""

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text, none empty; raises LlavaErrors that came up on the way."""
        ...

    def cancel(self) -> None:
        """End the answer here; `.answer` then has what was decoded so far. May be called twice, or late."""
        ...

    @property
    def answer(self) -> Answer:
        """The answer: complete once the stream is exhausted, else cancelled at this point."""
        ...


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an engine has done since it was loaded, and what it is doing. Counts, unless a unit is named."""

    num_running: int = 0
    num_waiting: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Of the prompt tokens: those that were not computed again."""
    num_new_tokens: int = 0
    num_images: int = 0
    num_cached_images: int = 0
    """Of the pictures: those whose features were remembered."""
    cache_bytes: int = 0
    """Memory of stored prefixes."""


class Engine(ABC):
    """Answers requests."""

    notices: tuple[str, ...] = ()
    """What the person should know about how it was loaded."""
    has_formats: bool = False
    """Whether it can hold answers to `SamplingParams.response_format`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What answers, as people should read it: "torch float32 on cpu"."""

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of weights that one new token of one answer reads; None where nobody knows."""
        return None

    @property
    @abstractmethod
    def template(self) -> ChatTemplate:
        """The prompt template in use."""

    @abstractmethod
    def submit(self, request: Request) -> AnswerStream:
        """Take a request; raises UsageError, PromptError, ImageError and their children at once."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """Return what was done so far; may be called at any time, from any thread."""

    @abstractmethod
    def close(self) -> None:
        """End what runs and free what is held; later requests are refused. May be called twice."""

    def ask(
        self, question: str | Sequence[Turn], images: Sequence[ImageSource] = (), **sampling: object
    ) -> str:
        """Answer one question about `images`; `sampling` are the fields of SamplingParams."""
        return read(self.stream(question, images, **sampling)).text

    def stream(
        self, question: str | Sequence[Turn], images: Sequence[ImageSource] = (), **sampling: object
    ) -> AnswerStream:
        """Answer one question piece by piece; the finished Answer is the stream's `.answer` afterwards."""
        params = SamplingParams(**sampling)  # type: ignore[arg-type]
        if isinstance(question, str):
            return self.submit(Request.of_question(question, images, params))
        return self.submit(Request(turns=question, images=images, sampling=params))

    def choices(self, request: Request, num_choices: int) -> list[AnswerStream]:
        """Begin several answers to one request; with a seed, the i-th is drawn with seed + i."""
        if not 1 <= num_choices <= MAX_CHOICES:
            raise ConfigError(f"n is {num_choices!r}", remedy=f"It must be 1 to {MAX_CHOICES}.")
        seed = request.sampling.seed
        seeds = [None if seed is None else seed + index for index in range(num_choices)]
        streams: list[AnswerStream] = []
        try:
            for own in seeds:
                streams.append(self.submit(replace(request, sampling=replace(request.sampling, seed=own))))
        finally:
            if len(streams) < num_choices:
                for stream in streams:
                    stream.cancel()
        return streams

    @abstractmethod
    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = DEFAULT_CONCURRENCY,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer]:
        """Answer many requests, at most `batch_size` of them at a time, and return the answers in order.

        `on_answer(index, answer)` is called as each answer is finished, in the caller's thread.
        """


def read(stream: AnswerStream) -> Answer:
    """Read a stream to its end; cancels it when reading is interrupted."""
    is_read = False
    try:
        for _ in stream:
            pass
        is_read = True
    finally:
        if not is_read:
            stream.cancel()
    return stream.answer
