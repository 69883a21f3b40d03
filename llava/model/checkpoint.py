"""What a folder is, decided by the files in it and what they contain, never by its name.

    own         llava.json: written by this package (the original's layout in safetensors)
    full        the original's: language model, projector, and sometimes the tower
    hf          the llava-hf layout
    projector   mm_projector.bin over a base language model
    lora        adapter_config.json (and non_lora_trainables.bin) over a base language model
    delta       differences to a base language model (`llava.model.apply_delta` adds them)
    llm         a language model alone
    tower       a vision tower alone

Spec 2.1 to 2.3. Reading starts here: `builder` loads what `recognise` names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from llava.errors import CheckpointError, WeightsError
from llava.files import read_json
from llava.model.locating import checkpoint_folder
from llava.model.manifest import Manifest, read_manifest
from llava.model.mapping import TOWER_PREFIX, from_hf
from llava.model.sources import Renamed, TensorSource
from llava.model.weights import WeightFiles

Kind = Literal["own", "full", "hf", "projector", "lora", "delta", "llm", "tower"]

PROJECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")
_TOWER_TYPES = ("clip", "clip_vision_model", "intern_vit_6b", "internvl_vision", "internvl")
_DELTA_NORM = 0.1
"""A language model's final norm has weights around 1; the difference of two has them around 0."""
_MODEL_WEIGHTS = re.compile(r"model.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was recognised."""

    path: Path
    kind: Kind
    config: Mapping[str, Any]
    """Content of config.json (empty for an adapter without one)."""
    manifest: Manifest | None
    """Content of llava.json, where there is one."""

    @cached_property
    def weights(self) -> TensorSource:
        """The folder's weights under the original's names; not of kinds `projector` and `lora`."""
        files = WeightFiles.open(self.path, "model")
        return Renamed(files, from_hf) if self.kind == "hf" else files

    @cached_property
    def has_tower(self) -> bool:
        """Whether the weights hold a vision tower (more than a tuned position table)."""
        if self.kind not in ("own", "full", "hf"):
            return False
        return any(key.startswith(f"{TOWER_PREFIX}") and "encoder." in key for key in self.weights.keys())

    @property
    def projector_files(self) -> list[Path]:
        """The files of kind `projector`; the first is the one to read."""
        return [self.path / name for name in PROJECTOR_FILES if (self.path / name).is_file()]


def recognise(path: str | os.PathLike[str]) -> Checkpoint:
    """Say what the folder (or hub id) `path` is; only headers of weight files are read.

    Raises CheckpointError for a folder that is none of the kinds above, FileError for broken JSON.
    """
    folder = checkpoint_folder(path)
    if (folder / "adapter_config.json").is_file():
        has_config = (folder / "config.json").is_file()
        config = read_object(folder / "config.json") if has_config else {}
        return Checkpoint(folder, "lora", config, read_manifest(folder))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json, so it is not a checkpoint",
            remedy="Give the folder that holds config.json and the weights.",
        )
    config = read_object(folder / "config.json")
    manifest = read_manifest(folder)
    return Checkpoint(folder, _kind(folder, config, manifest), config, manifest)


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a file that must hold a JSON object."""
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is not a JSON object", remedy="Download the file again.")
    return content


def _kind(folder: Path, config: Mapping[str, Any], manifest: Manifest | None) -> Kind:
    has_weights = has_model_weights(folder)
    if manifest is not None and has_weights:
        return "own"
    if isinstance(config.get("text_config"), Mapping) and isinstance(config.get("vision_config"), Mapping):
        if config.get("model_type") == "llava":
            return "hf"
        if config.get("model_type") not in _TOWER_TYPES:
            raise CheckpointError(
                f"{folder} holds a {config.get('model_type')!r} model, which is not of this family",
                remedy="Supported are LLaVA and InternVL-Chat V1.0 checkpoints; see docs/checkpoints.md.",
            )
    if config.get("model_type") in _TOWER_TYPES:
        return "tower"
    if "mm_vision_tower" in config or "mm_projector_type" in config:
        if has_weights:
            return "delta" if _is_delta(folder) else "full"
        if any((folder / name).is_file() for name in PROJECTOR_FILES):
            return "projector"
        raise CheckpointError(
            f"{folder} has a config.json and neither weights nor mm_projector.bin",
            remedy="Download the weight files too.",
        )
    if not has_weights:
        raise CheckpointError(
            f"{folder} has a config.json and no weights", remedy="Download the weight files too."
        )
    return "llm"


def has_model_weights(folder: Path) -> bool:
    """Whether a folder has weight files of a model (projector and adapter files are none)."""
    return any(_MODEL_WEIGHTS.fullmatch(item.name) for item in folder.iterdir())


def _is_delta(folder: Path) -> bool:
    files = WeightFiles.open(folder, "model")
    norms = [key for key in files.keys() if key in ("model.norm.weight", "transformer.norm_f.weight")]
    if not norms:
        raise WeightsError(
            f"{folder} has no final norm of a language model among its weights",
            remedy="Check that all shards are there.",
        )
    return bool(files.read(norms[0]).float().abs().mean() < _DELTA_NORM)
