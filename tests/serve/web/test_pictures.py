"""The page's picture modes, and what the model sees."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from llava.errors import ConfigError
from llava.processing.pixels import ImageProcessor, clip_rules, imagenet_rules
from llava.serve.web.history import Dialogue
from llava.serve.web.pictures import PictureMode, check_mode, prepare, preview


def picture(width: int = 40, height: int = 20) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_default_and_crop_leave_the_picture_and_resize_squashes_it() -> None:
    image = picture()
    assert prepare(image) is image
    assert prepare(image, "Crop") is image
    assert prepare(image, "Resize").tobytes() == image.resize((336, 336)).tobytes()


def test_pad_centres_the_picture_on_the_mean_colour() -> None:
    padded = np.asarray(prepare(picture(), "Pad"))
    assert padded.shape == (40, 40, 3)
    assert (padded[:10] == (122, 116, 104)).all()
    assert (padded[30:] == (122, 116, 104)).all()
    assert (padded[10:30] == np.asarray(picture())).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1344, 1344), (1344, 1344)),
        ((1345, 1345), (672, 672)),
        ((4000, 3000), (int(672 * (4000 / 3000)), 672)),
        ((3000, 4000), (672, int(672 * (4000 / 3000)))),
        ((4000, 1000), (1344, 336)),
        ((1400, 10), (1260, 9)),
        ((5000, 1), (5000, 1)),
    ],
)
def test_big_pictures_are_made_smaller_as_the_original_does(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert prepare(Image.new("RGB", size)).size == expected


def test_a_worker_gets_a_png() -> None:
    buffer = io.BytesIO()
    picture().save(buffer, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    (sent,) = Dialogue().asked("q", [url], mode="Pad").worker_pictures()
    decoded = Image.open(io.BytesIO(base64.b64decode(sent)))
    assert decoded.format == "PNG"
    assert decoded.tobytes() == prepare(picture(), "Pad").tobytes()


@pytest.mark.parametrize("mode", ["Default", "Pad", "Resize"])
@pytest.mark.parametrize("rules", [clip_rules(32), imagenet_rules(48, aspect="square")])
def test_the_preview_is_what_the_processor_makes_floats_of(rules: object, mode: PictureMode) -> None:
    assert isinstance(rules, type(clip_rules(1)))
    seen = preview(picture(), rules, mode)
    pixels = ImageProcessor(rules)([prepare(picture(), mode)])[0].numpy()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (rules.mean, rules.std))
    back = np.rint((pixels * std + mean) * 255).astype(np.uint8)
    assert (back.transpose(1, 2, 0) == np.asarray(seen)).all()


def test_an_unknown_mode_is_named_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'Pad'"):
        check_mode("Pa")
