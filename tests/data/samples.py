"""Data that lies in memory, and encoders over the fixtures' tokenizers, for the tests of `llava.data`."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from llava.data.records import Record
from llava.data.samples import SampleEncoder
from llava.errors import DataError
from llava.files import read_json
from llava.processing.pixels import ImageProcessor, ImageRules, imagenet_rules
from llava.processing.tokenizer import load_tokenizer
from llava.templates import get_template
from tests.processing.text_cases import FIXTURES, LLAMA, tokenizer_of

TRAINING = FIXTURES / "training"
BASE = FIXTURES / "checkpoints" / "vicuna-f-base"
NUM_IMAGE_TOKENS = 16
SIZE = 56


class ListData:
    """A mixture that lies in memory; None is a broken sample."""

    def __init__(self, records: Sequence[Record | None], *, fingerprint: str = "in-memory") -> None:
        self._records = list(records)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        if record is None:
            raise DataError("the sample is broken", where=self.where(index))
        return record

    def raw(self, index: int) -> object:
        return {"number": index}

    def where(self, index: int) -> str:
        return f"memory item {index + 1}"

    def source_of(self, index: int) -> str:
        record = self._records[index]
        return "memory" if record is None else record.source


def dialogue(*texts: str) -> tuple[dict[str, str], ...]:
    """Return turns of human and gpt by turns."""
    return tuple({"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts))


def record(*texts: str, images: Sequence[str | bytes] = (), name: str = "s", **fields: Any) -> Record:
    """Return a record of the given turns."""
    values = {"id": name, "source": "memory", "where": "memory item 1", **fields}
    return Record(turns=dialogue(*texts), images=tuple(images), **values)


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def encoder(
    version: str = "v1",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    rules: ImageRules | None = None,
    max_length: int = 2048,
    truncation: Literal["turns", "original"] = "turns",
    has_pictures: bool = True,
    im_start_end: bool = False,
) -> SampleEncoder:
    """Return an encoder with 56 pixel pictures of 16 features."""
    return SampleEncoder(
        tokenizer or tokenizer_of(LLAMA[0]),
        get_template(version),
        ImageProcessor(rules or imagenet_rules(SIZE)) if has_pictures else None,
        NUM_IMAGE_TOKENS if has_pictures else 0,
        max_length=max_length,
        truncation=truncation,
        has_pictures=has_pictures,
        im_start_end=im_start_end,
    )


@cache
def training_tokenizer(run: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of one of the original's recorded runs."""
    return load_tokenizer(BASE if run == "pretrain" else TRAINING / "tokenizer-mt")


@cache
def training_data(run: str) -> ListData:
    """Return the data of one of the original's recorded runs: pretrain, finetune or lora."""
    folder = TRAINING / ("pretrain" if run == "pretrain" else "finetune-data")
    return ListData([_record_of(raw, folder / "images", number) for number, raw in _numbered(folder)])


def _numbered(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(read_json(folder / "data.json"), start=1))


def _record_of(raw: dict[str, Any], images: Path, number: int) -> Record:
    named = [str(images / raw["image"])] if "image" in raw else []
    return Record(
        id=raw["id"],
        turns=tuple(raw["conversations"]),
        images=tuple(named),
        source="data",
        where=f"data.json item {number}",
    )


def length_mix(num: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return lengths as LLaVA's data has them: lognormal text, 60 % with 256 positions more."""
    generator = np.random.default_rng(seed)
    text = np.exp(generator.normal(math.log(130), 0.8, num)).clip(40, 600)
    return (text + 256 * (generator.random(num) < 0.6)).astype(np.int64)
