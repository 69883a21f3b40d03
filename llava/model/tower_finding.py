"""Find the vision tower of a checkpoint: inside it, or where `mm_vision_tower` points.

A tower inside wins, since it may have been trained (the original drops it and reads `mm_vision_tower`
again); a difference between the two is said. Its configuration comes from llava.json, the llava-hf config,
the tower's folder, or, for the released towers, from the shapes of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava.errors import CheckpointError
from llava.log import get_logger
from llava.model.checkpoint import Checkpoint, has_model_weights, read_object
from llava.model.locating import tower_folder
from llava.model.mapping import TOWER_PREFIX
from llava.model.sources import Renamed, TensorSource
from llava.model.towers import Tower, read_tower, table_size
from llava.model.weights import WeightFiles

logger = get_logger(__name__)

_HEAD_SIZES = {3200: 128, 1024: 64}
"""Width of the released InternViT towers -> size of a head, the one thing that no shape tells."""
_LARGE_CLIP = "openai/clip-vit-large-patch14"
_MAX_COMPARED = 1 << 16
"""Tensors up to this many values are compared between two towers: enough to notice, nothing to wait for."""


class FoundTower(NamedTuple):
    """A tower, and where its weights are."""

    tower: Tower
    source: TensorSource | None
    """Its weights under the names inside a checkpoint; None when they are inside."""
    folder: Path | None
    """Its own folder, where there is one."""


def find_tower(checkpoint: Checkpoint, original: Mapping[str, Any], notices: list[str]) -> FoundTower:
    """Return the tower of a checkpoint whose config.json is `original` (in the original's spelling).

    Raises CheckpointError when there is none, ConfigError for one that is not supported.
    """
    if not checkpoint.has_tower:
        return _beside(checkpoint, original)
    described: Mapping[str, Any] | None = None
    if checkpoint.manifest is not None:
        described = checkpoint.manifest.vision_config
    elif checkpoint.kind == "hf":
        described = checkpoint.config["vision_config"]
    if described is not None:
        return FoundTower(read_tower(described, source=str(checkpoint.path)), None, None)
    try:
        beside = _beside(checkpoint, original)
    except CheckpointError as error:
        tower = _infer(checkpoint, original)
        if tower is None:
            raise CheckpointError(
                f"{checkpoint.path} has a vision tower inside that nothing describes: {error.cause}",
                remedy="Put the tower's folder (its config.json is enough) beside the checkpoint.",
            ) from error
        notices.append("The vision tower is inside the checkpoint; how it is built was read off its weights.")
        return FoundTower(tower, None, None)
    notices.append(f"The vision tower is the one inside the checkpoint, not {beside.folder}.")
    if beside.source is not None and _differ(checkpoint.weights, beside.source):
        message = (
            f"The vision tower inside {checkpoint.path} differs from {beside.folder}; the one inside is used."
        )
        logger.warning(message)
        notices.append(message)
    return FoundTower(beside.tower, None, beside.folder)


def _beside(checkpoint: Checkpoint, original: Mapping[str, Any]) -> FoundTower:
    name = original.get("mm_vision_tower")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{checkpoint.path} has neither a vision tower inside nor mm_vision_tower in its config.json",
            remedy="Set mm_vision_tower to the folder of the tower.",
        )
    folder = tower_folder(name, checkpoint.path)
    tower = read_tower(read_object(folder / "config.json"), source=str(folder / "config.json"))
    has_weights = has_model_weights(folder)
    if not has_weights and not checkpoint.has_tower:
        raise CheckpointError(
            f"The vision tower's folder {folder} has no weights", remedy="Download the weight files too."
        )
    source = Renamed(WeightFiles.open(folder, "model"), TOWER_PREFIX.__add__) if has_weights else None
    return FoundTower(tower, source, folder)


def _differ(inside: TensorSource, beside: TensorSource) -> bool:
    """Whether a small tensor that both have differs, in shape (a resized position table) or in value."""
    names = set(inside.keys()) & set(beside.keys())
    for name in sorted(names):
        if inside.shape(name) != beside.shape(name):
            return True
        if torch.Size(inside.shape(name)).numel() <= _MAX_COMPARED and not torch.equal(
            inside.read(name).float(), beside.read(name).float()
        ):
            return True
    return False


def _infer(checkpoint: Checkpoint, original: Mapping[str, Any]) -> Tower | None:
    """Return the tower inside a checkpoint as its shapes tell it; None for one that is not released."""
    source = checkpoint.weights
    shapes = {
        key[len(TOWER_PREFIX) :]: source.shape(key) for key in source.keys() if key.startswith(TOWER_PREFIX)
    }
    layers = {
        int(match[1]) for match in (re.match(r".*encoder\.layers\.(\d+)\.", key) for key in shapes) if match
    }
    name = original.get("mm_vision_tower")
    if "encoder.layers.0.attn.qkv.weight" in shapes:
        return _infer_internvit(shapes, len(layers))
    if isinstance(name, str) and name.startswith(_LARGE_CLIP):
        table = shapes.get("vision_model.embeddings.position_embedding.weight")
        if table is not None and table[1] == 1024:
            return read_tower(_large_clip(table_size(table[0], 14), len(layers)), source=name)
    return None


def _infer_internvit(shapes: Mapping[str, tuple[int, ...]], num_layers: int) -> Tower | None:
    table = shapes.get("embeddings.position_embedding")
    if table is None or table[-1] not in _HEAD_SIZES:
        return None
    hidden_size = table[-1]
    patch_size = shapes["embeddings.patch_embedding.weight"][-1]
    layer = "encoder.layers.0."
    config = {
        "model_type": "intern_vit_6b",
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // _HEAD_SIZES[hidden_size],
        "intermediate_size": shapes[f"{layer}mlp.fc1.weight"][0],
        "patch_size": patch_size,
        "image_size": table_size(table[-2], patch_size),
        "qkv_bias": f"{layer}attn.qkv.bias" in shapes,
        "qk_normalization": f"{layer}attn.q_norm.weight" in shapes,
        "norm_type": "layer_norm" if f"{layer}norm1.bias" in shapes else "rms_norm",
    }
    return read_tower(config, source="the weights")


def _large_clip(image_size: int, num_layers: int) -> dict[str, Any]:
    """Return the configuration of OpenAI's ViT-L/14, at 224 or 336 pixels."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": image_size,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    }
