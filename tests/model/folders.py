"""The checkpoint fixtures, and small models and folders made from nothing, for the tests of `llava.model`."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.model.builder import LoadedModel, LoadOptions, load_model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
CASES: dict[str, Any] = json.loads((FIXTURES / "cases.json").read_text(encoding="utf-8"))
CLIP = FIXTURES / "llava-a-clip-mlp2x"
INTERNVIT = FIXTURES / "llava-b-internvit-mlp2x"
IM_START_END = FIXTURES / "llava-d-clip-imstartend"
PROJECTOR_ONLY = FIXTURES / "llava-f-stage1"
BASE = FIXTURES / "vicuna-f-base"
TOWERS = FIXTURES / "towers"
ALL = (CLIP, INTERNVIT, IM_START_END, PROJECTOR_ONLY)

SMALL_INTERNVIT: dict[str, Any] = {
    **json.loads((TOWERS / "InternViT-6B-tiny-56px" / "config.json").read_text()),
    "num_hidden_layers": 2,
}
SMALL_CLIP: dict[str, Any] = {
    **json.loads((TOWERS / "clip-tiny-56px" / "config.json").read_text()),
    "num_hidden_layers": 2,
}


def load(folder: Path, **options: Any) -> LoadedModel:
    """Load on the CPU in float32, with its base where one is needed; changes must not be made to it."""
    base = str(BASE) if folder.name == PROJECTOR_ONLY.name else None
    return load_model(folder, LoadOptions(**{"device": "cpu", "dtype": "float32", "base": base} | options))


@functools.lru_cache(maxsize=8)
def loaded(folder: Path, image_size: int | None = None) -> LoadedModel:
    """`load`, once in a test run."""
    return load(folder, image_size=image_size)


def expected(folder: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Return what the original computed: (expected/NAME.json, expected/NAME.npz)."""
    values = json.loads((FIXTURES / "expected" / f"{folder.name}.json").read_text(encoding="utf-8"))
    with np.load(FIXTURES / "expected" / f"{folder.name}.npz") as arrays:
        return values, dict(arrays)


def pictures() -> list[Image.Image]:
    """Return the four input pictures."""
    return [Image.open(FIXTURES / "images" / f"{number}.png").convert("RGB") for number in range(4)]


def copied(folder: Path, target: Path) -> Path:
    """Copy a checkpoint to `target/x`, and the towers beside it; returns the copy."""
    shutil.copytree(TOWERS, target / "towers")
    return Path(shutil.copytree(folder, target / "x"))


def change_config(folder: Path, **changes: object) -> None:
    """Set fields of a folder's config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a fixture folder."""
    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    tensors: dict[str, torch.Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return tensors


def small_config(**changes: object) -> dict[str, Any]:
    """Return an original config.json of a two-layer Llama over a small tower."""
    return {
        "model_type": "llava_llama",
        "vocab_size": 1000,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -1,
        "image_aspect_ratio": "pad",
        "mm_use_im_patch_token": False,
        **changes,
    }
