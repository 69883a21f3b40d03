"""Vision towers: the original's tower configurations as native ones, and the size of their pictures.

CLIP (`CLIPVisionModel`) and InternViT-6B (`InternVLVisionModel`). The original computes every layer and takes
`hidden_states[mm_vision_select_layer]`; here the layers above that tap are never built, so the tower's last
hidden state is the tap. Field names and defaults: the original's `intern_vit_6b/configuration_intern_vit.py`
(spec 2.6); numbers checked against it in `tests/model/test_parity.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from transformers import CLIPVisionConfig, InternVLVisionConfig

from llava.errors import ConfigError, WeightsError
from llava.log import get_logger

logger = get_logger(__name__)

Family = Literal["clip", "internvit"]

_INTERNVIT_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "qkv_bias": False,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qk_normalization": True,
    "num_hidden_layers": 48,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_factor": 0.1,
    "norm_type": "rms_norm",
}
_QK_NORM_EPS = 1e-6
"""The native class normalises queries and keys with this constant."""
_CLIP_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "initializer_range",
    "initializer_factor",
)
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
)
_TYPES: dict[str, Family] = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "intern_vit_6b": "internvit",
    "internvl_vision": "internvit",
}


@dataclass(frozen=True)
class Tower:
    """A vision tower as its own config.json describes it, with every layer it was trained with."""

    family: Family
    fields: Mapping[str, Any]
    """The tower's config.json in the original's spelling (CLIP: the vision part of it)."""

    @property
    def hidden_size(self) -> int:
        """Width of the tower."""
        return int(self.fields["hidden_size"])

    @property
    def num_layers(self) -> int:
        """Layers of the whole tower."""
        return int(self.fields["num_hidden_layers"])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.fields["patch_size"])

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that the tower's own position table is for."""
        return int(self.fields["image_size"])

    def layer_of(self, select_layer: int) -> int:
        """Return how many layers run before the tap: the index into `layers + 1` hidden states.

        Raises ConfigError when the tower has no such hidden state.
        """
        index = select_layer if select_layer >= 0 else self.num_layers + 1 + select_layer
        if not 1 <= index <= self.num_layers:
            raise ConfigError(
                f"mm_vision_select_layer is {select_layer}, and the tower has {self.num_layers} layers",
                remedy=f"Use -{self.num_layers} to -1, or 1 to {self.num_layers}.",
            )
        return index

    def native_config(self, *, select_layer: int, image_size: int) -> CLIPVisionConfig | InternVLVisionConfig:
        """Return the native configuration of the part of the tower that is built."""
        check_image_size(image_size, self.patch_size)
        try:
            if self.family == "clip":
                return self._native_clip(self.layer_of(select_layer), image_size)
            return self._native_internvit(self.layer_of(select_layer), image_size)
        except StrictDataclassError as error:
            raise ConfigError(f"The vision tower's config.json cannot be used: {_one_line(error)}") from error

    def _native_clip(self, num_layers: int, image_size: int) -> CLIPVisionConfig:
        fields = {name: self.fields[name] for name in _CLIP_FIELDS if name in self.fields}
        return CLIPVisionConfig(**fields | {"num_hidden_layers": num_layers, "image_size": image_size})

    def _native_internvit(self, num_layers: int, image_size: int) -> InternVLVisionConfig:
        fields = self.fields
        if fields["qk_normalization"] and fields["layer_norm_eps"] != _QK_NORM_EPS:
            raise ConfigError(
                f"layer_norm_eps is {fields['layer_norm_eps']} in the config of an InternViT tower with "
                f"qk_normalization",
                remedy=f"Only {_QK_NORM_EPS} can be computed exactly.",
            )
        return InternVLVisionConfig(
            hidden_size=fields["hidden_size"],
            num_hidden_layers=num_layers,
            num_attention_heads=fields["num_attention_heads"],
            attention_bias=fields["qkv_bias"],
            use_qk_norm=fields["qk_normalization"],
            intermediate_size=fields["intermediate_size"],
            hidden_act=fields["hidden_act"],
            attention_dropout=fields["attention_dropout"],
            projection_dropout=fields["dropout"],
            initializer_range=fields["initializer_range"],
            norm_type=fields["norm_type"],
            layer_norm_eps=fields["layer_norm_eps"],
            image_size=image_size,
            patch_size=fields["patch_size"],
            num_channels=fields["num_channels"],
            layer_scale_init_value=fields["initializer_factor"],
            # Mean pooling leaves out the final LayerNorm, which InternViT-6B does not have.
            use_mean_pooling=True,
        )


def read_tower(config: Mapping[str, Any], *, source: str) -> Tower:
    """Return the tower that a config.json describes; `source` names the file in errors.

    Raises ConfigError for a kind of tower that is not CLIP or InternViT.
    """
    model_type = config.get("model_type")
    if "qllama_config" in config:
        raise ConfigError(
            f"{source} describes an InternVL-14B tower (InternViT with QLLaMA), which is not supported",
            remedy="Use a checkpoint with an InternViT-6B or CLIP tower.",
        )
    nested = config.get("vision_config")
    if isinstance(nested, Mapping):
        default_type = "clip_vision_model" if model_type == "clip" else "intern_vit_6b"
        config = {"model_type": default_type, **nested}
        model_type = config["model_type"]
    family = _TYPES.get(str(model_type))
    if family is None:
        raise ConfigError.of_field("model_type of the vision tower", model_type, _TYPES, source=source)
    if family == "clip":
        return _checked(Tower(family, CLIPVisionConfig().to_dict() | dict(config)), source)
    fields = _from_native_internvit(config) if model_type == "internvl_vision" else dict(config)
    if fields.get("drop_path_rate"):
        logger.info("%s: drop_path_rate has no effect here: no layer is dropped", source)
    if fields.get("norm_type", "rms_norm") not in ("rms_norm", "layer_norm"):
        raise ConfigError.of_field(
            "norm_type", fields["norm_type"], ("rms_norm", "layer_norm"), source=source
        )
    return _checked(Tower(family, _INTERNVIT_DEFAULTS | fields), source)


def _checked(tower: Tower, source: str) -> Tower:
    """Return the tower; raises ConfigError for a size that is no whole number above 0."""
    for name in _SIZES:
        value = tower.fields[name]
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"{name} is {value!r} in {source}",
                remedy="Give a whole number above 0, as the tower was made.",
            )
    return tower


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise ConfigError unless pictures of this size are a whole number of patches."""
    if image_size < patch_size or image_size % patch_size:
        nearest = max(1, round(image_size / patch_size)) * patch_size
        raise ConfigError(
            f"image_size is {image_size}, not a multiple of the tower's patch of {patch_size} pixels",
            remedy=f"Use {nearest}.",
        )


def table_size(num_positions: int, patch_size: int) -> int:
    """Return the side in pixels of the pictures that a position table of this length is for.

    `num_positions` counts the class token. Raises WeightsError when the rest is no square.
    """
    grid = math.isqrt(num_positions - 1)
    if grid * grid + 1 != num_positions:
        raise WeightsError(
            f"The vision tower's position table has {num_positions} entries, which is no square plus one"
        )
    return grid * patch_size


def resize_positions(table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Resample a position table [..., old, C] to [..., num_positions, C]: float32, bicubic, the class kept.

    This is what the original does in every forward pass; the result is float32, to be cast once.
    """
    old_count, width = table.shape[-2:]
    if old_count == num_positions:
        return table
    old_grid = table_size(old_count, 1)
    new_grid = table_size(num_positions, 1)
    rows = table.float().reshape(old_count, width)
    patches = rows[1:].reshape(1, old_grid, old_grid, width).permute(0, 3, 1, 2)  # [1, C, g, g]
    patches = functional.interpolate(patches, size=(new_grid, new_grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(-1, width)
    return torch.cat([rows[:1], patches]).reshape(*table.shape[:-2], num_positions, width)


def _from_native_internvit(config: Mapping[str, Any]) -> dict[str, Any]:
    """Spell a native InternVLVisionConfig as the original does."""

    def side(value: object) -> object:
        return value[0] if isinstance(value, (list, tuple)) else value

    return {
        "model_type": "intern_vit_6b",
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"],
        "qkv_bias": config.get("attention_bias", False),
        "qk_normalization": config.get("use_qk_norm", False),
        "norm_type": config.get("norm_type", "layer_norm"),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-6),
        "hidden_act": config.get("hidden_act", "gelu"),
        "image_size": side(config.get("image_size", 448)),
        "patch_size": side(config.get("patch_size", 14)),
        "initializer_factor": config.get("layer_scale_init_value", 0.1),
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
