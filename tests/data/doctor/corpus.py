"""A seeded corpus for the doctor: sound samples of every sort, and samples with one known fault each.

Samples stand one a line in a JSON list, so that a fault is named by its kind and its line.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Raw = dict[str, Any]
WORDS = ("harbour", "lamp", "bridge", "meadow", "copper", "violin", "engine", "pepper", "window", "glacier")


@dataclass
class Corpus:
    """What was written, and what should be found."""

    folder: Path
    data: Path
    pictures: Path
    benchmark: Path
    expected: set[tuple[str, int]] = field(default_factory=set)
    """(code, line)."""
    sound: list[Raw] = field(default_factory=list)
    """Samples without any fault."""


def picture(rng: random.Random, *, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a picture like a photo: smooth light, some edges, some grain; no two are alike."""
    generator = np.random.default_rng(rng.getrandbits(32))
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    values = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16).copy()
    for _ in range(3):
        x, y = int(generator.integers(0, size[0] - 8)), int(generator.integers(0, size[1] - 8))
        wide, tall = generator.integers(6, max(size) // 2, 2)
        values[y : y + tall, x : x + wide] = generator.integers(0, 256, 3)
    values += generator.integers(-6, 7, values.shape).astype(np.int16)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def sentence(rng: random.Random, length: int = 7) -> str:
    """Return words that no other sentence has in this order."""
    return f"{' '.join(rng.choices(WORDS, k=length))} {rng.getrandbits(32):x}"


class Builder:
    """Makes samples; each has an id, a picture file of its own, and words of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.corpus = Corpus(folder, folder / "data.json", folder / "pictures", folder / "benchmark")
        self.corpus.pictures.mkdir(parents=True)
        self.corpus.benchmark.mkdir()
        self.number = 0
        self.earlier: list[Raw] = []

    def file(self, suffix: str = "png", image: Image.Image | None = None) -> str:
        """Write a picture and return its name."""
        self.number += 1
        name = f"p{self.number:04d}.{suffix}"
        (image or picture(self.rng)).save(self.corpus.pictures / name)
        return name

    def sample(self, *, has_picture: bool = True, num_rounds: int = 2) -> Raw:
        """Return a sound sample."""
        turns = []
        for _ in range(num_rounds):
            turns.append({"from": "human", "value": f"What about {sentence(self.rng)}?"})
            turns.append({"from": "gpt", "value": f"It is {sentence(self.rng)}."})
        raw: Raw = {"id": f"s{self.rng.getrandbits(40):010x}"}
        if has_picture:
            raw["image"] = self.file(self.rng.choice(("png", "jpg", "webp")))
            turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        raw["conversations"] = turns
        return raw

    def sound(self, index: int) -> Raw:
        """Return a sound sample, some of which look suspicious."""
        raw = self.sample(has_picture=index % 3 > 0, num_rounds=1 + index % 3)
        turns = raw["conversations"]
        texts = (
            "The tag <img> and <p class='x'> of HTML.",
            "na\u00efve caf\u00e9, \u00c5ngstr\u00f6m, AVALIA\u00c7\u00c3O, \u4e2d\u6587, \U0001f600.",
            "See [image] 3: the user said: hello.",
            "a < b and c > d, list[int], {x: 1}, 100 % sure, C:\\temp\\new.",
            "def f(x):\n\treturn x\n\nUse `ASSISTANT` or `USER` as a name.",
            "Line one.\r\nLine two with a ] and a } and a , inside.",
        )
        turns[-1]["value"] += " " + texts[index % len(texts)]
        if index % 10 == 4 and "image" in raw:
            raw["image"] = [raw["image"], self.file("png")]
            turns[0]["value"] = turns[0]["value"].replace("<image>", "<image> and <image>")
        if index % 10 == 7:
            raw["id"] = 100_000 + index
        return raw


def turn(raw: Raw, place: int) -> Raw:
    """Return a turn of a sample."""
    found: Raw = raw["conversations"][place]
    return found


def add(raw: Raw, place: int, text: str) -> Raw:
    """Append text to a turn."""
    turn(raw, place)["value"] += text
    return raw


def put(raw: Raw, **fields: object) -> Raw:
    """Set fields of a sample."""
    return {**raw, **fields}


def without(raw: Raw, key: str) -> Raw:
    """Return a sample without a field."""
    return {name: value for name, value in raw.items() if name != key}


def renamed(raw: Raw, old: str, new: str) -> Raw:
    """Return a sample with a field under another name."""
    return {new if name == old else name: value for name, value in raw.items()}


def with_turn(raw: Raw, place: int, value: object) -> Raw:
    """Return a sample with a turn replaced."""
    turns = list(raw["conversations"])
    turns[place] = value
    return put(raw, conversations=turns)


def with_bytes(make: Builder, name: str, data: bytes) -> Raw:
    """Return a sample whose picture file has these bytes."""
    (make.corpus.pictures / name).write_bytes(data)
    return put(make.sample(), image=name)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def copy_of(make: Builder, raw: Raw, name: str, *, quality: int | None) -> str:
    """Copy a sample's picture under another name: as it is, or smaller and as JPEG."""
    source = make.corpus.pictures / raw["image"]
    if quality is None:
        shutil.copy(source, make.corpus.pictures / name)
    else:
        image = Image.open(source).convert("RGB")
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(
            make.corpus.pictures / name, quality=quality
        )
    return name


def write(make: Builder, items: list[tuple[Raw | str | bytes, tuple[str, ...]]]) -> Corpus:
    """Write the list; each item is a sample, or the text that stands for one, with what is wrong with it."""
    corpus = make.corpus
    lines: list[bytes] = []
    for number, (item, codes) in enumerate(items):
        if isinstance(item, bytes):
            text = item
        else:
            text = (item if isinstance(item, str) else json.dumps(item)).encode("utf-8")
        is_last = number == len(items) - 1
        lines.append(text if is_last or text.endswith(b"//no comma") else text + b",")
        corpus.expected |= {(code, number + 2) for code in codes}
        if not codes and isinstance(item, dict):
            corpus.sound.append(item)
    content = b"[\n" + b"\n".join(line.removesuffix(b"//no comma") for line in lines) + b"\n]\n"
    corpus.data.write_bytes(content)
    return corpus


Plant = Callable[[Builder], "Raw | str | bytes"]
