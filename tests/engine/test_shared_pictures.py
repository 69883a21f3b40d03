"""Pictures that several requests of one call have in common: prepared once, and known for that call alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import llava
from llava.engine.engine import ChatEngine
from llava.engine.pictures import Picture, SharedPictures
from llava.engine.prompt import shared_length
from llava.engine.request import Request, SamplingParams
from llava.errors import FileError
from llava.processing.pixels import ImageProcessor


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that were resized, in order."""
    seen: list[Any] = []
    plainly = ImageProcessor.__call__

    def prepare(self: ImageProcessor, images: Any) -> torch.Tensor:
        seen.extend(images)
        return plainly(self, images)

    monkeypatch.setattr(ImageProcessor, "__call__", prepare)
    return seen


@pytest.fixture(scope="module")
def engine() -> Iterator[ChatEngine]:
    made = llava.load(engine="torch")
    assert isinstance(made, ChatEngine)
    yield made
    made.close()


def asked(image: Any, count: int) -> list[Request]:
    sampling = SamplingParams(temperature=0, max_new_tokens=2)
    return [Request.of_question(f"What is at place {n}?", [image], sampling) for n in range(count)]


def test_one_image_of_many_requests_is_prepared_once(engine: ChatEngine, prepared: list[Any]) -> None:
    image = Image.new("RGB", (640, 480), "red")
    together = [answer.text for answer in engine.generate(asked(image, 8), batch_size=4)]
    assert len(prepared) == 1
    alone = [engine.generate([request])[0].text for request in asked(image.copy(), 8)]
    assert together == alone


def test_an_image_that_was_painted_over_is_another_the_next_time(
    engine: ChatEngine, prepared: list[Any]
) -> None:
    image = Image.new("RGB", (64, 64), "yellow")
    engine.generate(asked(image, 2))
    image.paste("blue", (0, 0, 64, 64))
    engine.generate(asked(image, 2))
    assert len(prepared) == 2


def test_a_file_is_read_for_each_request(engine: ChatEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "green").save(path)
    assert len(engine.generate(asked(path, 3))) == 3
    path.unlink()
    with pytest.raises(FileError):
        engine.generate(asked(path, 1))


def test_a_picture_is_let_go_with_its_last_request() -> None:
    one, other = object(), object()
    made: list[Picture] = []

    def make() -> Picture:
        made.append(Picture(Image.new("RGB", (2, 2)), None))  # type: ignore[arg-type]
        return made[-1]

    shared = SharedPictures([one, other, one])
    assert shared.take(one, make) is shared.take(one, make)
    assert shared.take(other, make) is made[1]
    assert len(made) == 2
    assert shared.take(one, make) is made[2], "nothing is kept beyond what was announced"


def test_pixel_values_are_made_once_whoever_asks() -> None:
    num_calls = 0

    class Processor:
        rules = "rules"

        def __call__(self, images: list[Image.Image]) -> torch.Tensor:
            nonlocal num_calls
            num_calls += 1
            return torch.full((1, 3, *images[0].size), float(num_calls))

    picture = Picture(Image.new("RGB", (2, 2)), Processor())  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: picture.pixel_values, range(64)))
    assert num_calls == 1
    assert all(value is values[0] for value in values)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 5], [2, 5], 0)],
)
def test_keys_are_compared_from_their_beginning(one: list[int], other: list[int], length: int) -> None:
    assert shared_length(np.array(one, dtype=np.int64), np.array(other, dtype=np.int64)) == length
