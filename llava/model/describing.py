"""`llava describe`: the facts of a checkpoint, from its configuration and the headers of its weight files."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

from llava.errors import LlavaError
from llava.model.assembling import Parts, assemble
from llava.model.checkpoint import Kind, recognise
from llava.model.config import LlavaConfig
from llava.model.conventions import choose_template, context_length
from llava.model.mapping import TOWER_PREFIX, unused_reason
from llava.model.sources import TensorSource

_PHRASES: dict[Kind, str] = {
    "own": "checkpoint of this package",
    "full": "checkpoint in the original's format",
    "hf": "checkpoint in the llava-hf layout",
    "projector": "projector only",
    "lora": "LoRA adapter",
    "delta": "difference to a base model",
    "llm": "language model alone",
    "tower": "vision tower alone",
}


def describe(path: str | os.PathLike[str]) -> dict[str, object]:
    """Return what a checkpoint is, as plain JSON values, without reading its weights.

    Kind, parts, picture size and template with their reasons, files, notices. Raises CheckpointError and
    ConfigError for a folder that cannot be recognised.
    """
    checkpoint = recognise(path)
    facts: dict[str, object] = {
        "path": str(checkpoint.path),
        "kind": checkpoint.kind,
        "what": _PHRASES[checkpoint.kind],
    }
    try:
        parts = assemble(checkpoint, base=None, image_size=None)
    except LlavaError as error:
        # A part is elsewhere: say what there is, and what is needed.
        facts |= _stated(checkpoint.config)
        facts["needs"] = str(error)
    else:
        facts |= _assembled(parts)
    facts["files"] = _files(checkpoint.path)
    return facts


def _assembled(parts: Parts) -> dict[str, object]:
    config = parts.config()
    template, reason = choose_template(parts, None)
    tower, text = parts.tower, config.text_config
    counts = count_parameters(parts)
    return {
        "language_model": {
            "type": text.model_type,
            "layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            "vocabulary": parts.vocab_size,
            "context_length": context_length(config),
        },
        "vision_tower": {
            "type": {"clip": "CLIP", "internvit": "InternViT"}[tower.family],
            "layers": f"{tower.layer_of(config.mm_vision_select_layer)} of {tower.num_layers}",
            "hidden_size": tower.hidden_size,
            "inside_checkpoint": parts.checkpoint.has_tower,
        },
        "projector": config.mm_projector_type,
        "images": _images(parts, config),
        "template": {"name": template.name, "why": reason},
        "parameters": counts | {"total": sum(counts.values())},
        "dtype": stored_dtypes(parts.source),
        "weights_from": [str(folder) for folder in parts.files],
        "notices": parts.notices,
    }


def _images(parts: Parts, config: LlavaConfig) -> dict[str, object]:
    return {
        "size": parts.rules.size,
        "why": parts.rules_reason,
        "not_square": "padded" if parts.rules.aspect == "pad" else "cropped",
        "tokens_per_image": config.image_seq_length,
    }


def _stated(config: Any) -> dict[str, object]:
    """Return what config.json says about parts that cannot be looked at."""
    names = ("model_type", "mm_vision_tower", "mm_projector_type", "mm_vision_select_layer", "hidden_size")
    return {name: config[name] for name in names if name in config}


def count_parameters(parts: Parts) -> dict[str, int]:
    """Return the number of used parameters of each part: language_model, vision_tower, projector."""
    counts = {"language_model": 0, "vision_tower": 0, "projector": 0}
    source, num_tower_layers = parts.source, parts.tower.layer_of(parts.config().mm_vision_select_layer)
    for key in source.keys():
        if unused_reason(key, num_tower_layers=num_tower_layers) is None:
            is_projector = ".mm_projector." in key
            part = "vision_tower" if key.startswith(TOWER_PREFIX) else "language_model"
            counts["projector" if is_projector else part] += prod(source.shape(key))
    return counts


def stored_dtypes(source: TensorSource) -> list[str]:
    """Return the dtypes of the stored tensors, as "float16", sorted."""
    names = {str(source.dtype(key)).removeprefix("torch.") for key in source.keys()}
    return sorted(names)


def _files(folder: Path) -> list[str]:
    files = sorted(item for item in folder.iterdir() if item.is_file())
    return [f"{item.name} ({_size(item.stat().st_size)})" for item in files]


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
