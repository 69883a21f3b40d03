"""Brings picture features that we computed into llama.cpp, which takes nothing but pictures.

llama.cpp's own graph for CLIP towers (checked in the release that xllamacpp 2026.10 carries) puts the class
embedding behind the patches and then drops the first token, so that positions are off by one and a patch is
lost; and it has no graph at all for InternViT. So the tower runs in torch, and its features travel as the
pixels of a picture: each value as a 24-bit number in the three bytes of a pixel. The mmproj file that is
written here makes values of the pixels again: one convolution that weighs the bytes, and nothing behind it.

N features per picture, C their width, P side of a patch in pixels: one patch carries one feature vector.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from llava.engine.gguf_facts import import_gguf
from llava.errors import ConfigError, EngineError
from llava.processing.images import ImageSource, load_image
from llava.processing.pixels import ImageProcessor

_BITS = 24
_LAYOUT_EPS = 1e-5
_GELU_IS_IDENTITY = 16.0


@dataclass(frozen=True, slots=True)
class FeatureCarrier:
    """Writes features as pictures, and the mmproj file that reads them."""

    num_features: int
    """N, a square number: llama.cpp knows square pictures only."""
    width: int
    """C."""
    exponent: int
    """Values must lie between -2**exponent and 2**exponent; the step is 2**(exponent - 23)."""

    def __post_init__(self) -> None:
        if self.grid**2 != self.num_features:
            raise ConfigError(
                f"a picture has {self.num_features} features, which is no square number",
                remedy="Use the torch engine.",
            )

    @classmethod
    def for_values(cls, features: torch.Tensor) -> FeatureCarrier:
        """Return a carrier with room for 16 times the largest of some typical `features`: float[B, N, C]."""
        largest = max(float(features.detach().abs().max()), 2.0**-20)
        return cls(features.shape[1], features.shape[2], math.ceil(math.log2(16 * largest)))

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return math.isqrt(self.num_features)

    @property
    def patch(self) -> int:
        """P: pixels along a side of a patch, one for each value."""
        return math.isqrt(self.width - 1) + 1

    def picture(self, features: torch.Tensor) -> str:
        """Return base64 of a PNG that carries features float[N, C]; raises EngineError beyond the bounds."""
        step = 2.0 ** (self.exponent - _BITS + 1)
        values = features.detach().to(device="cpu", dtype=torch.float64).numpy()
        if not (np.abs(values) < 2.0**self.exponent - step).all():
            raise EngineError(
                "a picture's features are larger than llama.cpp was prepared for",
                remedy="Use the torch engine for this picture.",
            )
        numbers = np.rint(values / step).astype(np.int64) + (1 << (_BITS - 1))
        pixels = np.zeros((self.num_features, self.patch**2, 3), dtype=np.uint8)
        for channel, shift in enumerate((16, 8, 0)):
            pixels[:, : self.width, channel] = (numbers >> shift) & 0xFF
        grid, patch = self.grid, self.patch
        tiles = pixels.reshape(grid, grid, patch, patch, 3).swapaxes(1, 2)  # [g, P, g, P, 3]
        written = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(tiles).reshape(grid * patch, grid * patch, 3))
        image.save(written, "PNG", compress_level=0)
        return base64.b64encode(written.getvalue()).decode("ascii")

    def write_mmproj(self, path: Path) -> None:
        """Write the mmproj file that turns the pictures into features again."""
        gguf = import_gguf()
        writer = gguf.GGUFWriter(path, "clip")
        writer.add_type("mmproj")
        writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
        writer.add_clip_has_vision_encoder(True)
        writer.add_bool("clip.has_llava_projector", True)
        writer.add_clip_projector_type("mlp")
        writer.add_vision_image_size(self.grid * self.patch)
        writer.add_vision_patch_size(self.patch)
        writer.add_vision_embedding_length(self.width)
        writer.add_vision_feed_forward_length(self.width)
        writer.add_vision_projection_dim(self.width)
        writer.add_vision_block_count(0)
        writer.add_vision_head_count(1)
        writer.add_vision_attention_layernorm_eps(_LAYOUT_EPS)
        writer.add_vision_use_gelu(True)
        # A pixel's byte comes out as the number it is, exact even where it is rounded to 16 bits.
        writer.add_vision_image_mean([0.0, 0.0, 0.0])
        writer.add_vision_image_std([1 / 255] * 3)
        writer.add_array("clip.vision.feature_layer", [0])
        writer.add_tensor("v.patch_embd.weight", self._weights())
        writer.add_tensor("v.patch_embd.bias", np.full(self.width, -(2.0**self.exponent), dtype=np.float32))
        writer.add_tensor("v.position_embd.weight", np.zeros((self.num_features, self.width), np.float32))
        # llama.cpp's GELU between the two layers leaves values from 10 on as they are.
        identity, shift = np.eye(self.width, dtype=np.float32), 2.0**self.exponent + _GELU_IS_IDENTITY
        for layer, bias in ((0, shift), (2, -shift)):
            writer.add_tensor(f"mm.{layer}.weight", identity)
            writer.add_tensor(f"mm.{layer}.bias", np.full(self.width, bias, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _weights(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return float32[C, 3, P, P]: value c is the weighted bytes of pixel c, and nothing else."""
        weights = np.zeros((self.width, 3, self.patch**2), dtype=np.float32)
        index = np.arange(self.width)
        for channel, shift in enumerate((16, 8, 0)):
            weights[index, channel, index] = 2.0 ** (self.exponent - _BITS + 1 + shift)
        return weights.reshape(self.width, 3, self.patch, self.patch)


class Tower(Protocol):
    """What computes features: the tower of a file, or a model that torch has loaded."""

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float[B, N, C] of float32[B, 3, S, S]."""
        ...


class Carried(NamedTuple):
    """The pictures of a request."""

    pictures: tuple[str, ...] = ()
    """Base64 of a carrying PNG each."""
    num_reused: int = 0
    """Those whose features were remembered."""
    tower_s: float = 0.0
    """Seconds for the others."""


class CarriedPictures:
    """Pictures of requests as pictures that carry their features; the last ones used are kept."""

    def __init__(self, tower: Tower, processor: ImageProcessor, mmproj: Path, *, num_kept: int) -> None:
        """Write the mmproj file to `mmproj`; the tower sees two pictures to find the size of its features."""
        self.mmproj = mmproj
        self._tower = tower
        self._processor = processor
        self._num_kept = num_kept
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()
        size = processor.rules.size
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        typical = [Image.fromarray(noise), Image.new("RGB", (size, size), processor.rules.background)]
        self._carrier = FeatureCarrier.for_values(self._encode(processor(typical)))
        self._carrier.write_mmproj(mmproj)

    def carried(self, images: Sequence[ImageSource]) -> Carried:
        """Return a carrying picture for each picture; raises ImageError, EngineError."""
        pictures, num_reused, tower_s = [], 0, 0.0
        for image in images:
            pixel_values = self._processor([load_image(image)])
            begin = perf_counter()
            picture, was_kept = self._carried(pixel_values)
            pictures.append(picture)
            num_reused += was_kept
            tower_s += 0.0 if was_kept else perf_counter() - begin
        return Carried(tuple(pictures), num_reused, tower_s)

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._tower.encode_images(pixel_values)

    def _carried(self, pixel_values: torch.Tensor) -> tuple[str, bool]:
        key = hashlib.blake2b(pixel_values.numpy().tobytes(), digest_size=16).digest()
        # One at a time: the tower takes all the cores there are.
        with self._lock:
            was_kept = key in self._kept
            if not was_kept:
                self._kept[key] = self._carrier.picture(self._encode(pixel_values)[0])
            self._kept.move_to_end(key)
            found = self._kept[key]
            while len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        return found, was_kept
