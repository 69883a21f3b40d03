"""Pictures are encoded once while they are remembered."""

from __future__ import annotations

import torch

from llava.engine.features import FeatureCache


class CountingEncoder:
    def __init__(self) -> None:
        self.num_encoded = 0

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.num_encoded += len(pixel_values)
        return pixel_values.mean((1, 2, 3))[:, None, None].expand(-1, 2, 4).clone()


def pictures(*values: float) -> torch.Tensor:
    return torch.stack([torch.full((3, 2, 2), float(value)) for value in values])


def test_a_known_picture_is_not_encoded_again_and_order_is_kept() -> None:
    encoder = CountingEncoder()
    cache = FeatureCache(encoder)
    cache.encode(pictures(1, 2))
    features = cache.encode(pictures(3, 2, 3, 1))
    assert features[:, 0, 0].tolist() == [3, 2, 3, 1]
    assert encoder.num_encoded == 3


def test_the_oldest_picture_is_forgotten_first() -> None:
    encoder = CountingEncoder()
    cache = FeatureCache(encoder, max_images=2)
    for value in (1, 2, 1, 3):
        cache.encode(pictures(value))
    assert encoder.num_encoded == 3
    cache.encode(pictures(1))
    assert encoder.num_encoded == 3
    cache.encode(pictures(2))
    assert encoder.num_encoded == 4


def test_a_call_with_more_pictures_than_are_remembered_still_answers() -> None:
    cache = FeatureCache(CountingEncoder(), max_images=1)
    assert cache.encode(pictures(1, 2, 3))[:, 0, 0].tolist() == [1, 2, 3]


def test_the_same_bytes_in_another_shape_are_another_picture() -> None:
    encoder = CountingEncoder()
    cache = FeatureCache(encoder)
    cache.encode(torch.arange(24.0).reshape(1, 3, 2, 4))
    cache.encode(torch.arange(24.0).reshape(1, 3, 4, 2))
    assert encoder.num_encoded == 2
