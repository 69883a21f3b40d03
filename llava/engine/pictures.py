"""Pictures on their way to the model, and the features of those that were there before.

B pictures, N features per picture, C hidden size.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava.processing.pixels import ImageProcessor

PREPROCESSING_VERSION = 1
"""Part of every key: raise it when `ImageProcessor` gives other pixels for the same picture and rules."""
DEFAULT_FEATURE_BYTES = 256 << 20


class Picture:
    """A decoded picture, known by what it is and what the model would see of it."""

    def __init__(self, image: Image, image_processor: ImageProcessor) -> None:
        """`image`: RGB, upright, as `load_image` returns it. It is let go once its pixel values are there."""
        self._image: Image | None = image
        self._image_processor = image_processor
        self._pixel_values: torch.Tensor | None = None
        self._lock = threading.Lock()

    @cached_property
    def key(self) -> bytes:
        """Hash of pixels, size, mode, picture rules and preprocessing version."""
        image = self._image
        assert image is not None, "a key is made before the picture is let go"
        facts = (image.size, image.mode, self._image_processor.rules, PREPROCESSING_VERSION)
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(image.tobytes())
        return digest.digest()

    @property
    def pixel_values(self) -> torch.Tensor:
        """float32[1, 3, H, W], normalised; computed on first use, in whichever thread that is."""
        with self._lock:
            if self._pixel_values is None:
                _ = self.key
                image, self._image = self._image, None
                assert image is not None, "pixel values are made once"
                self._pixel_values = self._image_processor([image])
            return self._pixel_values


class SharedPictures:
    """The PIL images that several requests have in common, so that each is made a `Picture` once.

    Contract: they stay as they are until the last of these requests was begun. For one thread.
    """

    def __init__(self, images: Iterable[object]) -> None:
        """`images`: those of all requests, each as often as it is asked about."""
        self._num_left = Counter(map(id, images))
        self._pictures: dict[int, Picture] = {}

    def take(self, image: object, make: Callable[[], Picture]) -> Picture:
        """Return the picture of an image of some request; `make` makes it where it is not there yet."""
        place = id(image)
        self._num_left[place] -= 1
        picture = self._pictures.pop(place, None) or make()
        if self._num_left[place] > 0:
            self._pictures[place] = picture
        return picture


class FeatureCache:
    """Encodes pictures once while they are remembered; the one unused longest is forgotten first.

    `encode_all` is for the engine's thread alone, `__contains__` for any.
    """

    def __init__(
        self, encode: Callable[[torch.Tensor], torch.Tensor], *, max_bytes: int = DEFAULT_FEATURE_BYTES
    ) -> None:
        """`encode`: float32[B, 3, H, W] -> float[B, N, C]. max_bytes: 0 remembers nothing."""
        self._encode = encode
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._num_bytes = 0

    def __contains__(self, picture: Picture) -> bool:
        """Whether the features of a picture are remembered now."""
        with self._lock:
            return picture.key in self._features

    def encode_all(self, pictures: Sequence[Picture]) -> tuple[list[torch.Tensor], int]:
        """Return float[N, C] for each picture, and how many different ones the tower had to see."""
        known = {picture.key: self._find(picture.key) for picture in pictures}
        missing = {picture.key: picture for picture in pictures if known[picture.key] is None}
        if missing:
            pixel_values = torch.cat([picture.pixel_values for picture in missing.values()])
            for key, features in zip(missing, self._encode(pixel_values), strict=True):
                known[key] = features
                self._remember(key, features)
        return [_present(known[picture.key]) for picture in pictures], len(missing)

    def _find(self, key: bytes) -> torch.Tensor | None:
        with self._lock:
            if key not in self._features:
                return None
            self._features.move_to_end(key)
            return self._features[key]

    def _remember(self, key: bytes, features: torch.Tensor) -> None:
        # A row of a batch would keep the whole batch alive.
        features = features.clone()
        with self._lock:
            self._features[key] = features
            self._num_bytes += features.nbytes
            while self._num_bytes > self._max_bytes and self._features:
                _, oldest = self._features.popitem(last=False)
                self._num_bytes -= oldest.nbytes


def _present(features: torch.Tensor | None) -> torch.Tensor:
    assert features is not None, "a picture without features"
    return features
