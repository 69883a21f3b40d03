"""A look at what the model under training answers: questions of the training data, expected beside got.

The prompt is the sample's own ids up to its first trained token, so the model is asked exactly as it was
trained, whatever the template; decoding is the engine's. Works on the model as it is in memory: adapters
active, mixed dtypes under autocast. A model that is sharded over ranks is probed from its written folder.

L tokens, N features per picture, C hidden size.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.records import Record
from llava.data.samples import EncodedSample, SampleEncoder
from llava.engine.frontend import eos_ids_of
from llava.engine.generation import Generation
from llava.engine.prompt import Prompt
from llava.engine.request import SamplingParams
from llava.engine.runner import Chunk
from llava.engine.sequential_runner import SequentialRunner
from llava.errors import DataError, ImageError
from llava.log import get_logger
from llava.processing.images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava.model.builder import LoadedModel
    from llava.train.trainee import Trainee

    Answerer = Trainee | LoadedModel

_logger = get_logger(__name__)

MIN_NEW_TOKENS = 32
MAX_NEW_TOKENS = 256
THUMBNAIL_SIDE = 160
"""Pixels of the longer side."""


@dataclass(frozen=True)
class ProbeAnswer:
    """One question of the training data and what the model made of it."""

    id: str
    source: str
    where: str
    question: str
    expected: str
    got: str
    is_equal: bool
    """Apart from white space at the ends."""
    thumbnails: tuple[str, ...]
    """Its pictures as small JPEG data URIs."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for events.jsonl."""
        return asdict(self)


class Steps(Protocol):
    """What is asked of a plan here."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""

    def step(self, step: int) -> list[list[int]]:
        """Return the samples of a step, slot by slot."""


class Records(Protocol):
    """What is asked of a mixture here."""

    def __getitem__(self, index: int) -> Record:
        """Return one sample."""


def trained_records(plan: Steps, records: Records, n: int) -> Iterator[Record]:
    """Yield samples that the plan trains on: one of each of `n` steps spread over the run, then others.

    The same plan gives the same ones, so that answers after different steps can be compared.
    """
    every = max(1, plan.num_steps // max(1, n))
    spread = list(range(0, plan.num_steps, every))
    seen: set[int] = set()
    for place in range(len(plan.step(0)) if plan.num_steps else 0):
        for step in spread:
            slots = plan.step(step)
            for index in slots[place][:1] if place < len(slots) else ():
                if index not in seen:
                    seen.add(index)
                    yield records[index]


def probe(
    answerer: Answerer,
    records: Iterable[Record],
    n: int,
    *,
    max_length: int,
    compute_dtype: torch.dtype = torch.float32,
) -> list[ProbeAnswer]:
    """Answer the first question of the first `n` usable records, greedily; the model's modes are restored.

    max_length: tokens of a training sample. compute_dtype: of matrix products. Records that cannot be used
    are passed over with a warning; their policy is the training's.
    """
    has_pictures = answerer.num_image_tokens > 0
    encoder = SampleEncoder(
        answerer.tokenizer,
        answerer.template,
        answerer.image_processor,
        answerer.num_image_tokens,
        max_length=max_length,
        im_start_end=answerer.im_start_end,
        has_pictures=has_pictures,
    )
    answers: list[ProbeAnswer] = []
    device = answerer.model.get_input_embeddings().weight.device
    mixed = compute_dtype != torch.float32
    with (
        _evaluating(answerer.model),
        torch.autocast(device.type, compute_dtype) if mixed else nullcontext(),
    ):
        for record in records:
            if len(answers) >= n:
                break
            try:
                encoded = encoder.encode(record)
                images = [load_image(image) for image in encoded.images]
            except (DataError, ImageError) as error:
                _logger.warning("not probed: %s", error)
                continue
            if encoded.num_targets:
                answers.append(_ask(answerer, record, encoded, images, device))
    return answers


def _ask(
    answerer: Answerer, record: Record, encoded: EncodedSample, images: list[Image], device: torch.device
) -> ProbeAnswer:
    is_trained = [label != IGNORE_INDEX for label in encoded.labels]
    start = is_trained.index(True)
    num_expected = [*is_trained[start:], False].index(False)
    num_pictures = encoded.input_ids[:start].count(IMAGE_TOKEN_INDEX)
    got = _complete(answerer, encoded.input_ids[:start], images, num_expected, device)
    number = next(index for index, turn in enumerate(record.turns) if turn["from"] == "gpt")
    expected = record.turns[number]["value"].strip()
    return ProbeAnswer(
        id=record.id,
        source=record.source,
        where=record.where,
        question="\n".join(
            turn["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip() for turn in record.turns[:number]
        ).strip(),
        expected=expected,
        got=got,
        is_equal=expected == got,
        thumbnails=tuple(_thumbnail(image) for image in images[:num_pictures]),
    )


def _complete(
    answerer: Answerer, input_ids: list[int], images: list[Image], num_expected: int, device: torch.device
) -> str:
    """Return the model's greedy continuation of ids with one -200 per picture."""
    model = answerer.model
    expanded = [
        token
        for token in input_ids
        for _ in range(answerer.num_image_tokens if token == IMAGE_TOKEN_INDEX else 1)
    ]
    prompt = Prompt.of(expanded, (), answerer.num_image_tokens)
    generation = Generation(
        prompt,
        SamplingParams(),
        tokenizer=answerer.tokenizer,
        stop=answerer.template.stop_strings,
        eos_ids=eos_ids_of(answerer.model, answerer.tokenizer),
        max_new_tokens=min(MAX_NEW_TOKENS, max(MIN_NEW_TOKENS, 2 * num_expected)),
        start=time.perf_counter(),
    )
    # Row by row, with the library's own cache: the model's attention stays as training left it.
    runner = SequentialRunner(model, device, max_cache_bytes=0)
    row = runner.open(generation.max_tokens)
    features = _features(answerer, images, input_ids, device)
    embeds = prompt.overlay(runner.embed(prompt.input_ids), 0, features, 0)
    while True:
        generation.accept(int(runner.forward([Chunk(row, embeds)]).argmax(-1)))
        if generation.is_finished:
            return generation.answer().text
        embeds = runner.embed(torch.tensor(generation.token_ids[-1:]))


def _features(
    answerer: Answerer, images: list[Image], input_ids: list[int], device: torch.device
) -> list[torch.Tensor]:
    """Return float[N, C] of each picture that the ids hold."""
    num_pictures = input_ids.count(IMAGE_TOKEN_INDEX)
    if not num_pictures or answerer.image_processor is None:
        return []
    pixel_values = answerer.image_processor(images[:num_pictures]).to(device)
    with torch.inference_mode():
        return list(answerer.model.encode_images(pixel_values))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and every module back to the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _thumbnail(image: Image) -> str:
    """Return a picture as a small JPEG data URI."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
