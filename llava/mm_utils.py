"""The original's public helpers under their old address, `llava.mm_utils`, from which outside code imports.

The work is done in `llava.processing`; this file keeps names, arguments and results as the original had them
(original: `llava/mm_utils.py`). Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from llava.errors import ConfigError
from llava.processing.anyres import (
    TowerProcessor,
    divide_to_patches,
    get_anyres_image_grid_shape,
    process_anyres_image,
    resize_and_pad_image,
    select_best_resolution,
)
from llava.processing.encoding import tokenizer_image_token
from llava.processing.images import load_image, to_rgb
from llava.processing.pixels import ImageProcessor, expand_to_square
from llava.processing.stopping import KeywordsStoppingCriteria

__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]


def get_model_name_from_path(model_path: str) -> str:
    """Return the last part of a path, with its parent's name before it where it is `checkpoint-*`."""
    *parents, name = model_path.strip("/").split("/")
    return f"{parents[-1]}_{name}" if name.startswith("checkpoint-") and parents else name


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode a base64 picture to RGB; raises ImageError or ImageLimitError."""
    text = image.decode("ascii", errors="replace") if isinstance(image, bytes) else image
    return load_image(text, allow_path=False)


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...] | int) -> Image.Image:
    """Centre a picture on a square canvas of `background_color`; a square one is returned as it is."""
    return expand_to_square(pil_img, background_color)


def process_images(
    images: Sequence[Image.Image], image_processor: TowerProcessor, model_cfg: object
) -> torch.Tensor | list[torch.Tensor]:
    """Make the model's pixel_values from PIL images as `model_cfg.image_aspect_ratio` says.

    `pad`: each picture on a square canvas; `anyres`: tiles by `model_cfg.image_grid_pinpoints`; anything
    else: the processor alone, which crops the long side.
    Returns float32[B, 3, S, S], for `anyres` [B, T, 3, S, S], or a list of the pictures' tensors where their
    shapes differ.
    """
    # The original's boundary: any object may stand for a config, and a field that is absent means None.
    aspect = getattr(model_cfg, "image_aspect_ratio", None)
    pictures = [to_rgb(image) for image in images]
    if aspect == "anyres":
        grid_pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
        if grid_pinpoints is None:
            raise ConfigError(
                "image_aspect_ratio is 'anyres' but there is no image_grid_pinpoints",
                remedy="Add it to config.json, for example [[336, 672], [672, 336], [672, 672]].",
            )
        pixel_values = [
            process_anyres_image(picture, image_processor, grid_pinpoints) for picture in pictures
        ]
        is_even = len({tensor.shape for tensor in pixel_values}) == 1
        return torch.stack(pixel_values) if is_even else pixel_values
    if isinstance(image_processor, ImageProcessor):
        batch = image_processor.preprocess(pictures, aspect="pad" if aspect == "pad" else "square")
    else:
        if aspect == "pad":
            background = tuple(int(255 * mean) for mean in image_processor.image_mean)
            pictures = [expand_to_square(picture, background) for picture in pictures]
        batch = image_processor.preprocess(pictures, return_tensors="pt")
    stacked: torch.Tensor = batch["pixel_values"]
    return stacked
