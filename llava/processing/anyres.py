"""LLaVA-1.6's "anyres": a large picture as one small view of the whole plus tiles in full detail.

Place in the flow: `mm_utils.process_images` when a checkpoint's `image_aspect_ratio` is `anyres`. Inherited
from the original's `llava/mm_utils.py`; the order of roundings and tie-breaks is the contract. Sizes are
(width, height) in pixels. `T` = tiles + 1, `S` = the vision tower's input size.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from llava.errors import ConfigError

Size = tuple[int, int]


class TowerProcessor(Protocol):
    """What is needed of a tower's picture processor: ours, or one of transformers."""

    @property
    def crop_size(self) -> Any:
        """{"height": S, "width": S}."""

    @property
    def size(self) -> Any:
        """{"shortest_edge": S}."""

    @property
    def image_mean(self) -> Any:
        """Mean of each channel, for values in 0..1."""

    def preprocess(self, images: Image.Image | Sequence[Image.Image], return_tensors: str) -> Any:
        """Return {"pixel_values": float32[B, 3, S, S]}."""


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Return the resolution that shows most pixels of the picture and, among equals, wastes fewest."""
    original_width, original_height = original_size
    best: Size | None = None
    best_score = (0, 0)
    for width, height in possible_resolutions:
        scale = min(width / original_width, height / original_height)
        shown = int(original_width * scale) * int(original_height * scale)
        effective = min(shown, original_width * original_height)
        score = (effective, effective - width * height)
        if best is None or score > best_score:
            best, best_score = (width, height), score
    if best is None:
        raise ConfigError("image_grid_pinpoints is empty", remedy="Give at least one [width, height].")
    return best


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit the picture into a black canvas of exactly `target_resolution`, keeping its aspect, centred."""
    width, height = image.size
    target_width, target_height = target_resolution
    scale_x, scale_y = target_width / width, target_height / height
    if scale_x < scale_y:
        new_size = target_width, min(math.ceil(height * scale_x), target_height)
    else:
        new_size = min(math.ceil(width * scale_y), target_width), target_height
    canvas = Image.new("RGB", (target_width, target_height), (0, 0, 0))
    canvas.paste(
        image.resize(new_size), ((target_width - new_size[0]) // 2, (target_height - new_size[1]) // 2)
    )
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut the picture into tiles of `patch_size` square, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def read_grid_pinpoints(grid_pinpoints: str | Sequence[Sequence[int]]) -> list[Size]:
    """Return the resolutions as pairs; configs hold them as a list or as the text of one.

    Raises ConfigError when it is neither.
    """
    try:
        pairs = ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints
        resolutions = [(int(width), int(height)) for width, height in pairs]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        resolutions = []
    if not resolutions or min(min(pair) for pair in resolutions) < 1:
        raise ConfigError(
            f"image_grid_pinpoints is {str(grid_pinpoints)[:100]!r}",
            remedy="Give a list like [[336, 672], [672, 336]].",
        )
    return resolutions


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Sequence[int]], patch_size: int
) -> tuple[int, int]:
    """Return how many tiles the chosen resolution has (across, down)."""
    width, height = select_best_resolution(image_size, read_grid_pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def process_anyres_image(
    image: Image.Image, processor: TowerProcessor, grid_pinpoints: str | Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return float32[T, 3, S, S]: the whole picture squashed to S x S first, then its tiles row by row."""
    resolution = select_best_resolution(image.size, read_grid_pinpoints(grid_pinpoints))
    tiles = divide_to_patches(resize_and_pad_image(image, resolution), processor.crop_size["height"])
    edge = processor.size["shortest_edge"]
    views = [image.resize((edge, edge)), *tiles]
    return torch.stack([processor.preprocess(view, return_tensors="pt")["pixel_values"][0] for view in views])
