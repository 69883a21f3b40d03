"""Pad, resize and crop in bytes: PIL's own results to the bit, for less work than PIL's own call.

Place in the flow: used by `pixels.ImageProcessor`. Inherited behaviour: the original's `expand2square`, and
the resize and centre crop of CLIP's image processor. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from llava.errors import ImageError, ImageLimitError
from llava.processing.image_rules import ImageRules

Colour = tuple[int, int, int]

MAX_RESIZED_PIXELS: Final = 1 << 27
"""Largest picture that resizing may make before the crop: 134 million pixels, 400 MB."""
STRIP_PIXELS: Final = 1 << 22
"""A padded canvas is built in strips of about this many pixels, so that memory stays small."""
TALL_RATIO: Final = 8
"""From this height over width on, a padded picture's columns are computed singly (equal speed at 6)."""

_BICUBIC: Final = Image.Resampling.BICUBIC
_WEIGHT_ONE: Final = 1 << 22


def resize_and_crop(image: Image.Image, rules: ImageRules) -> Image.Image:
    """Pad (if the rules say so), resize and crop an RGB picture to `rules.size` square, in bytes."""
    width, height = image.size
    if not (width and height):
        raise ImageError(f"The picture is empty: {width} x {height} pixels", remedy="Give another picture.")
    edge = rules.shortest_edge or rules.size
    if rules.aspect == "pad" and width != height:
        resized = _resize_padded(image, edge, rules.background)
    else:
        resized = _resize_shortest_edge(image, edge, rules.size)
    return resized if resized.size == (rules.size, rules.size) else _centre_crop(resized, rules.size)


def expand_to_square(image: Image.Image, background: tuple[int, ...] | int) -> Image.Image:
    """Centre a picture on a square canvas as the original's `expand2square`: offset (long - short) // 2."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new(image.mode, (side, side), background)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _resize_padded(image: Image.Image, edge: int, background: Colour) -> Image.Image:
    """Resize the square canvas around `image` to `edge` without building it: equal to the bit.

    PIL resizes every row, then every column of the result; the two passes are run apart here.
    """
    width, height = image.size
    if width > height:
        rows = _wide_rows(image, edge, background)
    elif height >= TALL_RATIO * width:
        rows = _tall_rows(image, edge, background)
    else:
        rows = _canvas_rows(image, edge, background)
    return rows.resize((edge, edge), _BICUBIC)


def _wide_rows(image: Image.Image, edge: int, background: Colour) -> Image.Image:
    """First pass over a wide picture's canvas: all rows of padding come out alike, so one is resized."""
    side, height = image.size
    rows = _empty_row(side, edge, background).resize((edge, side), Image.Resampling.NEAREST)
    rows.paste(image.resize((edge, height), _BICUBIC), (0, (side - height) // 2))
    return rows


def _canvas_rows(image: Image.Image, edge: int, background: Colour) -> Image.Image:
    """First pass over a tall picture's canvas, in strips, so that the canvas is never whole in memory."""
    width, side = image.size
    rows = Image.new("RGB", (edge, side))
    for start, stop in _strips(side, STRIP_PIXELS // side):
        strip = Image.new("RGB", (side, stop - start), background)
        strip.paste(image.crop((0, start, width, stop)), ((side - width) // 2, 0))
        rows.paste(strip.resize((edge, stop - start), _BICUBIC), (0, start))
    return rows


def _tall_rows(image: Image.Image, edge: int, background: Colour) -> Image.Image:
    """First pass over a very tall picture's canvas: only columns that show the picture are computed.

    Everything else is padding. PIL cannot be asked for some columns only, so its own weights are taken (they
    are whole numbers, so float64 sums are exact) and the few columns are a matrix product: 4 times as fast
    on 1000 x 20000 pixels.
    """
    width, side = image.size
    left = (side - width) // 2
    reach = (
        4 * (side // edge + 1) + 2
    )  # Wider than the filter: a column that shows the picture sees no further.
    start, stop = max(0, left - reach), min(side, left + width + reach)
    weights = _row_weights(side, edge, start, stop)
    shown = np.flatnonzero(weights[left - start : left - start + width].any(axis=0))
    columns = slice(shown[0], shown[-1] + 1)
    weights = weights[:, columns]
    empty_row = np.asarray(_empty_row(side, edge, background))
    rows = np.broadcast_to(empty_row, (side, edge, 3)).copy()
    for first, last in _strips(side, STRIP_PIXELS // (4 * (stop - start))):
        strip = Image.new("RGB", (stop - start, last - first), background)
        strip.paste(image.crop((0, first, width, last)), (left - start, 0))
        sums = np.asarray(strip).transpose(0, 2, 1).astype(np.float64) @ weights  # [rows, 3, columns]
        values = np.clip(np.floor(sums / _WEIGHT_ONE + 0.5), 0, 255)
        rows[first:last, columns] = values.astype(np.uint8).transpose(0, 2, 1)
    return Image.fromarray(rows)


def _row_weights(side: int, edge: int, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Return float64[stop - start, edge]: PIL's weight of input column i in each output column of a row.

    PIL rounds its weights to 22 binary digits for bytes; resizing an integer picture that is 2^22 at one
    place and 0 elsewhere rounds them the same way and shows them.
    """
    weights = np.empty((stop - start, edge))
    for first, last in _strips(stop - start, STRIP_PIXELS // side):
        impulses = np.zeros((last - first, side), dtype=np.int32)
        index = np.arange(last - first)
        impulses[index, start + first + index] = _WEIGHT_ONE
        weights[first:last] = np.asarray(Image.fromarray(impulses).resize((edge, last - first), _BICUBIC))
    return weights


def _empty_row(side: int, edge: int, background: Colour) -> Image.Image:
    return Image.new("RGB", (side, 1), background).resize((edge, 1), _BICUBIC)


def _strips(length: int, step: int) -> Iterator[tuple[int, int]]:
    step = max(1, step)
    return ((start, min(start + step, length)) for start in range(0, length, step))


def _resize_shortest_edge(image: Image.Image, edge: int, crop: int) -> Image.Image:
    """Resize the short side to `edge`; columns outside the crop are dropped between the two passes."""
    width, height = image.size
    long_edge = int(edge * max(width, height) / min(width, height))
    if long_edge * edge > MAX_RESIZED_PIXELS:
        raise ImageLimitError(
            f"The picture is {width} x {height} pixels, too long and thin to be resized",
            remedy="Cut it, or use a model that pads its pictures.",
        )
    if width <= height or long_edge <= crop:
        new_size = (edge, long_edge) if width <= height else (long_edge, edge)
        return image.resize(new_size, _BICUBIC)
    rows = image.resize((long_edge, height), _BICUBIC)
    left = (long_edge - crop) // 2
    return rows.crop((left, 0, left + crop, height)).resize((crop, edge), _BICUBIC)


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the centre; where the picture is smaller, black is added with the reference's uneven rounding."""
    width, height = image.size
    left, top = _crop_start(width, size), _crop_start(height, size)
    return image.crop((left, top, left + size, top + size))


def _crop_start(length: int, size: int) -> int:
    # When the picture is smaller, the reference rounds the margin up on the near side: -ceil((size - length)
    # / 2), which is what flooring the negative number gives.
    return (length - size) // 2
