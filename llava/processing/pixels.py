"""Pictures to `pixel_values`: pad or crop, resize, scale, normalise, to the bit as the original.

Place in the flow: `images.load_image` -> RGB picture -> here -> the vision tower. The rules are those of
CLIP's image processor as the original used it for every tower: [expand to a square canvas of the mean
colour], resize the SHORTEST EDGE bicubically (PIL), crop the centre (zeros where the picture is smaller), x
1/255, subtract mean, divide by std.

Why it is fast and still exact: a byte has 256 values, so scaling and normalising is a table of 3 x 256 floats
that is computed once in the reference's own order of roundings; nothing is converted to float before the
crop; and PIL's resize is two passes (rows, then columns) that can be run apart, so that neither rows that are
one colour nor columns that will be cropped are worked on.

Shapes: `B` batch, `S` = `ImageRules.size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature

from llava.errors import ConfigError
from llava.processing.image_rules import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Aspect,
    ImageRules,
    clip_rules,
    imagenet_rules,
)
from llava.processing.images import to_rgb
from llava.processing.resampling import expand_to_square, resize_and_crop

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Aspect",
    "ImageProcessor",
    "ImageRules",
    "clip_rules",
    "expand_to_square",
    "imagenet_rules",
    "resize_and_crop",
]


class ImageProcessor:
    """Turns pictures into `pixel_values` by fixed rules.

    Also answers to the names that outside code uses on a tower's processor: `preprocess`, `size`,
    `crop_size`, `image_mean`, `image_std`.
    """

    def __init__(self, rules: ImageRules) -> None:
        self.rules = rules
        self._table = _byte_table(rules)

    @overload
    def __call__(self, images: Sequence[Image.Image], return_tensors: None = None) -> torch.Tensor: ...
    @overload
    def __call__(self, images: Image.Image | Sequence[Image.Image], return_tensors: str) -> BatchFeature: ...

    def __call__(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str | None = None
    ) -> torch.Tensor | BatchFeature:
        """Make pixel_values: float32[B, 3, S, S], normalised, padded or cropped as the rules say.

        With `return_tensors` the call is `preprocess`, as outside code expects of a tower's processor.
        Raises ImageError for an empty picture and ImageLimitError for one too long to be resized.
        """
        if return_tensors is not None:
            return self.preprocess(images, return_tensors=return_tensors)
        if isinstance(images, Image.Image):
            images = [images]
        return self._pixels(images, self.rules)

    def preprocess(
        self,
        images: Image.Image | Sequence[Image.Image],
        return_tensors: str = "pt",
        *,
        aspect: Aspect = "square",
    ) -> BatchFeature:
        """Return {"pixel_values": float32[B, 3, S, S]}, not padded unless `aspect` says so.

        The original's tower processors never padded, whatever the checkpoint's rules: that was
        `process_images`' business (`llava.mm_utils`), which outside code calls when it wants it.
        """
        if return_tensors not in ("pt", "np"):
            raise ConfigError.of_field("return_tensors", return_tensors, ("pt", "np"))
        if isinstance(images, Image.Image):
            images = [images]
        pixel_values = self._pixels(images, replace(self.rules, aspect=aspect))
        return BatchFeature(
            {"pixel_values": pixel_values if return_tensors == "pt" else pixel_values.numpy()}
        )

    def preview(self, image: Image.Image) -> Image.Image:
        """Return what the model sees as an RGB picture of S x S: the last step before bytes become floats."""
        return resize_and_crop(to_rgb(image), self.rules)

    @property
    def size(self) -> dict[str, int]:
        """Short side after resizing, in the spelling of Hugging Face processors."""
        return {"shortest_edge": self.rules.shortest_edge or self.rules.size}

    @property
    def crop_size(self) -> dict[str, int]:
        """Size of the result, in the spelling of Hugging Face processors."""
        return {"height": self.rules.size, "width": self.rules.size}

    @property
    def image_mean(self) -> list[float]:
        """Mean of each channel, for values in 0..1."""
        return list(self.rules.mean)

    @property
    def image_std(self) -> list[float]:
        """Standard deviation of each channel, for values in 0..1."""
        return list(self.rules.std)

    def _pixels(self, images: Sequence[Image.Image], rules: ImageRules) -> torch.Tensor:
        pixel_values = np.empty((len(images), 3, rules.size, rules.size), dtype=np.float32)  # [B, 3, S, S]
        for image, planes in zip(images, pixel_values, strict=True):
            bytes_rgb = np.asarray(resize_and_crop(to_rgb(image), rules))  # [S, S, 3]
            for channel, plane in enumerate(planes):
                # A byte is always a valid index: "clip" only spares numpy a checked copy of the result.
                np.take(self._table[channel], bytes_rgb[..., channel], out=plane, mode="clip")
        return torch.from_numpy(pixel_values)


def _byte_table(rules: ImageRules) -> npt.NDArray[np.float32]:
    """Return float32[3, 256]: the normalised value of each byte, rounded where the reference rounds.

    The reference scales in float64, rounds to float32, then subtracts and divides in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean = np.array(rules.mean, dtype=np.float32)[:, None]
    std = np.array(rules.std, dtype=np.float32)[:, None]
    return cast("npt.NDArray[np.float32]", (scaled - mean) / std)
