"""An engine in this process: a frontend, a runner, and the scheduler between them.

    submit -> prepare (prompt ids, pictures; the caller's thread) -> scheduler (the engine's thread) -> pieces

`torch_engine` and the other engines over a runner only say which runner.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

from llava.engine.constraining import Grammars
from llava.engine.frontend import Frontend
from llava.engine.generation import Generation, OnPiece
from llava.engine.loop import EngineLoop
from llava.engine.pictures import DEFAULT_FEATURE_BYTES, FeatureCache, SharedPictures
from llava.engine.protocol import DEFAULT_CONCURRENCY, Engine, OnAnswer, Statistics
from llava.engine.request import Answer, Request
from llava.engine.runner import BeamSearch, Runner
from llava.engine.scheduler import Scheduler, SchedulerOptions
from llava.errors import UsageError
from llava.processing.pixels import ImageProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava.processing.image_rules import ImageRules
    from llava.processing.processor import Processor
    from llava.templates import ChatTemplate

Events = SimpleQueue[tuple[Generation, str | None]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of an engine."""

    scheduling: SchedulerOptions = field(default_factory=SchedulerOptions)
    feature_bytes: int = DEFAULT_FEATURE_BYTES
    """Picture features that are remembered; 0 remembers none."""
    cache_bytes: int | None = None
    """Keys and values of running and finished answers together; None takes a share of what is free."""


class ChatEngine(Engine):
    """A runner that answers requests."""

    has_formats = True

    def __init__(self, frontend: Frontend, runner: Runner, options: EngineOptions | None = None) -> None:
        """Take the runner over: from now on only the engine's thread uses it."""
        self.options = options or EngineOptions()
        self.frontend = frontend
        self._runner = runner
        self._grammars = Grammars(frontend.processor.tokenizer, frontend.eos_ids)
        self._features = FeatureCache(runner.encode_images, max_bytes=self.options.feature_bytes)
        scheduling = self.options.scheduling
        scheduler = Scheduler(runner, self._features, scheduling)
        self._loop = EngineLoop(scheduler, max_waiting=scheduling.max_waiting)
        # An interpreter that ends under a computing thread aborts; so the thread ends first.
        weakref.finalize(self, self._loop.close)

    @property
    def name(self) -> str:
        """What the model runs on."""
        return self._runner.name

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one new token of one answer reads: language model and head."""
        return self._runner.weight_bytes

    @property
    def processor(self) -> Processor:
        """Prompt and pictures -> the tensors of a model call."""
        return self.frontend.processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the original's ids."""
        return self.processor.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The prompt template in use."""
        return self.processor.template

    def use_picture_rules(self, rules: ImageRules) -> None:
        """Prepare pictures by other rules from now on."""
        processor = replace(self.processor, image_processor=ImageProcessor(rules))
        self.frontend = replace(self.frontend, processor=processor)

    def submit(self, request: Request) -> LocalStream:
        """Check and prepare a request (errors are raised here), and let the engine work on it."""
        events: Events = SimpleQueue()
        return LocalStream(self._begin(request, lambda *event: events.put(event)), events, self._loop)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = DEFAULT_CONCURRENCY,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer]:
        """Answer many requests, at most `batch_size` at a time, and return the answers in order.

        An impossible request raises when its turn comes; the others of its time are given up. A PIL image
        that several requests hold is prepared once: leave it as it is until the answers are there.
        """
        events: Events = SimpleQueue()
        indices: dict[Generation, int] = {}
        answers: dict[int, Answer] = {}
        waiting = iter(enumerate(requests))
        shared = SharedPictures(image for request in requests for image in request.images)
        try:
            while len(answers) < len(requests):
                while len(indices) < batch_size and (following := next(waiting, None)) is not None:
                    index, request = following
                    begun = self._begin(request, lambda *event: events.put(event), shared)
                    indices[begun] = index
                generation, piece = events.get()
                if piece is not None:
                    continue
                index = indices.pop(generation)
                answers[index] = _answer(generation)
                if on_answer is not None:
                    on_answer(index, answers[index])
        finally:
            self._give_up(indices)
        return [answers[index] for index in range(len(requests))]

    def statistics(self) -> Statistics:
        """Return what was done so far."""
        return self._loop.statistics()

    def close(self) -> None:
        """End what runs; later requests are refused."""
        self._loop.close()

    def _begin(self, request: Request, on_piece: OnPiece, shared: SharedPictures | None = None) -> Generation:
        start = perf_counter()
        if request.sampling.num_beams > 1 and not isinstance(self._runner, BeamSearch):
            raise UsageError(
                f"beam search was asked of {self.name}, which has none",
                remedy="Leave num_beams at 1, or use the torch engine.",
            )
        wanted = request.sampling.response_format
        constraint = self._grammars.constraint(wanted) if wanted is not None else None
        prompt = self.frontend.prepare(request, shared)
        for picture in prompt.pictures:
            if picture not in self._features:
                # Resizing is for the caller's thread; the engine's has the model to run.
                _ = picture.pixel_values
        generation = Generation(
            prompt,
            request.sampling,
            tokenizer=self.tokenizer,
            stop=(*self.template.stop_strings, *request.sampling.stop),
            eos_ids=self.frontend.eos_ids,
            max_new_tokens=min(request.sampling.max_new_tokens, self.frontend.context_length - len(prompt)),
            start=start,
            on_piece=on_piece,
            constraint=constraint,
        )
        self._loop.add(generation)
        return generation

    def _give_up(self, generations: dict[Generation, int]) -> None:
        for generation in generations:
            generation.is_cancelled = True
        self._loop.wake()


class LocalStream:
    """The pieces of one answer of an engine in this process."""

    def __init__(self, generation: Generation, events: Events, loop: EngineLoop) -> None:
        """`events` has what the generation gives."""
        self._generation = generation
        self._events = events
        self._loop = loop
        self._is_read = False

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text as they come."""
        while not self._is_read:
            _, piece = self._events.get()
            if piece is None:
                self._is_read = True
                break
            yield piece
        if self._generation.error is not None:
            raise self._generation.error

    def cancel(self) -> None:
        """End the answer here."""
        self._generation.is_cancelled = True
        self._loop.wake()

    @property
    def answer(self) -> Answer:
        """The answer: complete once the stream is exhausted, else cancelled at this point."""
        if not self._is_read:
            self.cancel()
            for _ in self:
                pass
        return _answer(self._generation)


def _answer(generation: Generation) -> Answer:
    if generation.error is not None:
        raise generation.error
    return generation.answer()
