"""The engine people talk to: questions and pictures in, text out, one at a time or many at once.

    submit -> prepare (prompt ids, pictures) -> prefill -> step, step, ... -> answer

Streaming is the primitive: `generate` and `ask` consume the same events that `stream` yields.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from llava.engine.batch import DecodingBatch, Prompt
from llava.engine.features import FeatureCache
from llava.engine.request import Answer, Request, SamplingParams
from llava.engine.row import Row
from llava.errors import ContextLengthError, ImageLimitError
from llava.processing.images import ImageSource, load_image
from llava.processing.processor import Processor, check_placeholders
from llava.templates import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava.model.builder import LoadedModel
    from llava.model.modeling import LlavaForCausalLM
    from llava.templates import ChatTemplate

MAX_IMAGES_PER_REQUEST = 16
DEFAULT_BATCH_SIZE = 8


class ChatEngine:
    """A loaded model that answers requests with torch, on any device."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.processor = Processor(
            tokenizer=loaded.tokenizer,
            image_processor=loaded.image_processor,
            template=loaded.template,
            num_image_tokens=loaded.num_image_tokens,
            im_start_end=loaded.im_start_end,
        )
        self._features = FeatureCache(self._encode_images)
        self._eos_ids = _eos_ids(loaded)

    @property
    def model(self) -> LlavaForCausalLM:
        """The transformers model."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the original's ids."""
        return self.loaded.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The prompt template in use."""
        return self.loaded.template

    def ask(
        self, question: str | Sequence[Turn], images: Sequence[ImageSource] = (), **sampling: object
    ) -> str:
        """Answer one question about `images`; `sampling` are the fields of SamplingParams."""
        request = _request(question, images, SamplingParams(**sampling))  # type: ignore[arg-type]
        return self.generate([request])[0].text

    def stream(
        self, question: str | Sequence[Turn], images: Sequence[ImageSource] = (), **sampling: object
    ) -> AnswerStream:
        """Answer one question piece by piece; the finished Answer is the stream's `.answer` afterwards."""
        request = _request(question, images, SamplingParams(**sampling))  # type: ignore[arg-type]
        return self.submit(request)

    def submit(self, request: Request) -> AnswerStream:
        """Check and prepare a request now (errors are raised here); decode as the stream is read."""
        start = perf_counter()
        return AnswerStream(self, self._prepare(request, start))

    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """Answer many requests, `batch_size` rows at a time, and return the answers in order.

        `on_answer(index, answer)` is called as each answer is finished. Raises before anything of a batch is
        decoded when one of its requests is impossible.
        """
        answers: dict[int, Answer] = {}
        for begin in range(0, len(requests), batch_size):
            start = perf_counter()
            rows = [self._prepare(request, start) for request in requests[begin : begin + batch_size]]
            for row, _ in self.decode(rows):
                if row.is_finished:
                    index = begin + rows.index(row)
                    answers[index] = row.answer()
                    if on_answer is not None:
                        on_answer(index, answers[index])
        return [answers[index] for index in range(len(requests))]

    def decode(self, rows: Sequence[Row]) -> Generator[tuple[Row, str], None, None]:
        """Decode rows together until all are finished; yields (row, new text) for each row at each step."""
        batch = DecodingBatch(self.model, self.loaded.device)
        active = list(rows)
        logits = batch.prefill([row.prompt for row in active])
        while True:
            for row, token in zip(active, _choose(active, logits), strict=True):
                yield row, row.accept(token)
            remaining = [index for index, row in enumerate(active) if not row.is_finished]
            if not remaining:
                return
            if len(remaining) < len(active):
                batch.keep(remaining)
                active = [active[index] for index in remaining]
            logits = batch.step([row.token_ids[-1] for row in active])

    def _prepare(self, request: Request, start: float) -> Row:
        if len(request.images) > MAX_IMAGES_PER_REQUEST:
            raise ImageLimitError(
                f"{len(request.images)} pictures in one request",
                remedy=f"Give at most {MAX_IMAGES_PER_REQUEST}.",
            )
        ids = self.processor.encode(request.prompt if request.prompt is not None else request.turns)
        check_placeholders(ids, len(request.images))
        input_ids = torch.tensor(self.processor.expand(ids))
        room = self.loaded.context_length - len(input_ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(input_ids)} tokens, the model's context {self.loaded.context_length}",
                remedy="Shorten the conversation, or use fewer pictures.",
            )
        features = self._image_features(request.images) if request.images else None
        return Row(
            prompt=Prompt(input_ids, features),
            sampling=request.sampling,
            tokenizer=self.tokenizer,
            stop=(*self.template.stop_strings, *request.sampling.stop),
            eos_ids=self._eos_ids,
            max_new_tokens=min(request.sampling.max_new_tokens, room),
            start=start,
        )

    def _image_features(self, images: Sequence[ImageSource]) -> torch.Tensor:
        features = self._features.encode(self.processor.pixels([load_image(image) for image in images]))
        return features.flatten(0, 1)  # [n * N, C]

    def _encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.encode_images(pixel_values.to(self.loaded.device))


class AnswerStream:
    """The pieces of one answer. Stop reading, or call `cancel`, to end it early."""

    def __init__(self, engine: ChatEngine, row: Row) -> None:
        self._row = row
        self._events = engine.decode([row])

    def __iter__(self) -> Iterator[str]:
        for _, piece in self._events:
            if piece:
                yield piece

    def cancel(self) -> None:
        """End the answer here; `.answer` then has what was decoded so far."""
        self._events.close()
        self._row.cancel()

    @property
    def answer(self) -> Answer:
        """The answer: complete once the stream is exhausted, else cancelled at this point."""
        if not self._row.is_finished:
            self.cancel()
        return self._row.answer()


def _request(
    question: str | Sequence[Turn], images: Sequence[ImageSource], sampling: SamplingParams
) -> Request:
    if isinstance(question, str):
        return Request.of_question(question, images, sampling)
    return Request(turns=question, images=images, sampling=sampling)


def _choose(rows: Sequence[Row], logits: torch.Tensor) -> list[int]:
    """Return the next id of every row; one arg-max for the whole batch when all are greedy."""
    if all(row.sampler.is_plain_argmax for row in rows):
        return logits.argmax(-1).tolist()
    return [row.sampler.choose(row_logits) for row, row_logits in zip(rows, logits, strict=True)]


def _eos_ids(loaded: LoadedModel) -> frozenset[int]:
    """Collect the ids that end an answer: the generation config's (one or several) and the tokenizer's."""
    configured = loaded.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, loaded.tokenizer.eos_token_id) if token is not None)
