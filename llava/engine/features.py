"""The projected features of the pictures last seen, so that a second question does not encode them again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch


class FeatureCache:
    """Encode pictures once while they are remembered; the oldest unused one is forgotten first."""

    def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor], *, max_images: int = 64) -> None:
        """`encode`: float[B, 3, H, W] -> float[B, N, C]."""
        self._encode = encode
        self._max_images = max_images
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float[B, N, C] for float32[B, 3, H, W]; remembered pictures skip the tower."""
        keys = [_key(image) for image in pixel_values]
        missing = {key: row for row, key in enumerate(keys) if key not in self._features}
        fresh: dict[bytes, torch.Tensor] = {}
        if missing:
            with torch.inference_mode():
                features = self._encode(pixel_values[list(missing.values())])
            fresh = dict(zip(missing, features, strict=True))
        result = torch.stack([fresh[key] if key in fresh else self._features[key] for key in keys])
        self._remember(keys, fresh)
        return result

    def _remember(self, keys: Sequence[bytes], fresh: dict[bytes, torch.Tensor]) -> None:
        self._features.update(fresh)
        for key in keys:
            self._features.move_to_end(key)
        while len(self._features) > self._max_images:
            self._features.popitem(last=False)


def _key(image: torch.Tensor) -> bytes:
    """Identify preprocessed pixels by size and content; what made them is part of what they are."""
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().cpu().numpy().tobytes())
    return digest.digest()
