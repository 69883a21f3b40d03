"""Features as pixels: every value comes back, as far as its step allows."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava.engine.feature_carrier import CarriedPictures, FeatureCarrier
from llava.errors import ConfigError, EngineError
from llava.processing.image_rules import clip_rules
from llava.processing.pixels import ImageProcessor


def values_of(carrier: FeatureCarrier, picture: str) -> torch.Tensor:
    """Undo `picture` by the arithmetic that the mmproj file describes."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(np.float64)
    grid, patch = carrier.grid, carrier.patch
    tiles = image.reshape(grid, patch, grid, patch, 3).swapaxes(1, 2).reshape(grid**2, patch, patch, 3)
    values = np.einsum("nhwc,vchw->nv", tiles, carrier._weights().astype(np.float64)) - 2.0**carrier.exponent
    return torch.from_numpy(values)


@pytest.mark.parametrize("width", [5, 64, 100])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_features_come_back(width: int, scale: float) -> None:
    features = torch.randn(1, 9, width, generator=torch.Generator().manual_seed(width)) * scale
    carrier = FeatureCarrier.for_values(features)
    found = values_of(carrier, carrier.picture(features[0]))
    assert (found - features[0]).abs().max() <= 2.0 ** (carrier.exponent - 24) * 1.001
    assert 2.0 ** (carrier.exponent - 24) < 4e-6 * float(features.abs().max())


def test_what_does_not_fit_is_refused() -> None:
    carrier = FeatureCarrier.for_values(torch.ones(1, 4, 8))
    carrier.picture(torch.full((4, 8), 15.9))
    for bad in (17.0, float("nan"), float("inf")):
        with pytest.raises(EngineError, match="larger than"):
            carrier.picture(torch.full((4, 8), bad))
    with pytest.raises(ConfigError, match="no square"):
        FeatureCarrier.for_values(torch.ones(1, 5, 8))


def test_a_picture_is_computed_once_while_it_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    seen: list[int] = []

    class Tower:
        def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
            seen.append(len(pixel_values))
            return pixel_values.mean((2, 3))[:, None].repeat(1, 4, 1)

    pictures = CarriedPictures(Tower(), ImageProcessor(clip_rules(8)), tmp_path / "m.gguf", num_kept=2)
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 20, 30)]
    first = pictures.carried(images[:2])
    assert (len(set(first.pictures)), first.num_reused) == (2, 0)
    assert first.tower_s > 0
    assert pictures.carried(images[:2]) == (first.pictures, 2, 0.0)
    assert seen == [2, 1, 1]
    pictures.carried([images[2], images[1]])
    assert seen == [2, 1, 1, 1]
    pictures.carried(images[:1])
    assert seen == [2, 1, 1, 1, 1]
