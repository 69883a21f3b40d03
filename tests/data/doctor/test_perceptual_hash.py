"""Copies of a picture look the same to the doctor, other pictures do not."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from llava.data.doctor.perceptual_hash import (
    is_same_picture,
    looks,
    popcount,
    similar,
    similar_within,
    thumbnail,
)
from llava.demo import example_images
from tests.data.doctor.corpus import picture


def pictures() -> list[Image.Image]:
    rng = random.Random(3)
    drawn = [Image.open(path).convert("RGB") for path in example_images()]
    return [*drawn, *(picture(rng, size=(160, 120)) for _ in range(60))]


def hashes(images: list[Image.Image]) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    found = [looks(image) for image in images]
    assert not any(one.is_flat for one in found)
    return np.array([[one.edges, one.layout] for one in found], dtype=np.uint64)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: jpeg(image, 40),
        lambda image: scaled(image, 0.5),
        lambda image: scaled(image, 2.3),
        lambda image: jpeg(scaled(image, 0.75), 60),
        lambda image: ImageEnhance.Brightness(image).enhance(1.06),
    ],
    ids=["jpeg", "half", "larger", "smaller and jpeg", "brighter"],
)
def test_a_copy_is_found_and_no_other_picture(change: object) -> None:
    assert callable(change)
    originals = pictures()
    copies = [change(image) for image in originals]
    pairs = [
        (one, two)
        for one, two in similar(hashes(copies), hashes(originals))
        if is_same_picture(thumbnail(copies[one]), thumbnail(originals[two]))
    ]
    assert pairs == [(number, number) for number in range(len(originals))]


def test_a_picture_of_one_colour_has_no_looks() -> None:
    assert looks(Image.new("RGB", (50, 40), (200, 10, 10))).is_flat


def test_many_pictures_are_compared_in_parts_and_give_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = pictures()
    values = hashes([*originals, *(jpeg(image, 80) for image in originals)])
    every = similar_within(values)
    monkeypatch.setattr("llava.data.doctor.perceptual_hash._MAX_ALL_PAIRS", 10)
    in_parts = similar_within(values)
    assert set(in_parts) <= set(every)
    num = len(originals)
    assert all((one, one + num) in in_parts for one in range(num))


def test_bits_are_counted() -> None:
    values = np.array([0, 1, 3, 2**64 - 1], dtype=np.uint64)
    assert popcount(values).tolist() == [0, 1, 2, 64]
