"""What a model begins training with beside its base: a projector (fresh or trained), and weights laid over.

Used by `building`. All sources here have the original's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava.errors import CheckpointError, WeightsError
from llava.model.adapters import base_name
from llava.model.checkpoint import PROJECTOR_FILES, has_model_weights, read_object
from llava.model.config import LlavaConfig
from llava.model.manifest import Manifest, read_manifest
from llava.model.mapping import TOWER_PREFIX, from_projector_file
from llava.model.projector import build_projector
from llava.model.sources import Renamed, TensorDict, TensorSource
from llava.model.weights import WeightFiles

EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
_INHERITED = (
    "mm_vision_tower",
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
)


@dataclass(frozen=True)
class TrainedProjector:
    """A projector to begin with, from a file or from the folder of a run."""

    source: TensorSource
    """The projector's tensors, and a tuned position table."""
    embeddings: torch.Tensor | None = None
    """Rows of the token embedding that were trained with it: float[rows, C]; <im_start>, <im_end> last."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What its folder's config.json says of the `mm_*` keys that a model made from it shares."""
    manifest: Manifest | None = None


def read_projector(path: str) -> TrainedProjector:
    """Open mm_projector.bin, a safetensors file, or a folder: of a stage-1 run, or of a whole model.

    Raises CheckpointError when nothing of the kind is there, WeightsError for a file without a projector.
    """
    given = Path(path).expanduser()
    folder = given if given.is_dir() else None
    if folder is None:
        files = WeightFiles.open_files([given])
    else:
        found = next((folder / name for name in PROJECTOR_FILES if (folder / name).is_file()), None)
        if found is not None:
            files = WeightFiles.open_files([found])
        elif has_model_weights(folder):
            files = WeightFiles.open(folder, "model")
        elif (folder / "adapter_config.json").is_file():
            files = WeightFiles.open(folder, "non_lora_trainables")
        else:
            raise CheckpointError(
                f"{folder} has neither mm_projector.safetensors nor mm_projector.bin nor weights of a model",
                remedy="Give the folder that the align stage wrote, or the file.",
            )
    is_whole = folder is not None and has_model_weights(folder)

    def rename(key: str) -> str | None:
        name = from_projector_file(key)
        if name in EMBEDDINGS or (is_whole and "mm_projector." not in name):
            return None
        return name

    source = Renamed(files, rename)
    if not any("mm_projector." in key for key in source.keys()):
        raise WeightsError(f"{path} holds no projector", remedy="Give mm_projector.bin of an align run.")
    rows = None if is_whole else next((k for k in files.keys() if k.endswith("embed_tokens.weight")), None)
    config: Mapping[str, Any] = {}
    if folder is not None and (folder / "config.json").is_file():
        stated = read_object(folder / "config.json")
        config = {name: stated[name] for name in _INHERITED if stated.get(name) is not None}
    return TrainedProjector(
        source=source,
        embeddings=None if rows is None else files.read(rows).clone(),
        config=config,
        manifest=None if folder is None else read_manifest(folder),
    )


def fresh_projector(config: LlavaConfig, *, seed: int) -> TensorSource:
    """Return a projector as `nn.Linear` initialises it, drawn from `seed`, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = build_projector(
            config.mm_projector_type,
            tower_size=config.vision_config.hidden_size,
            hidden_size=config.text_config.hidden_size,
        )
    return TensorDict(
        {f"model.mm_projector.{name}": value.detach() for name, value in projector.named_parameters()}
    )


def without_projector(source: TensorSource) -> TensorSource:
    """Return a source without the projector in it."""
    return Renamed(source, lambda key: None if "mm_projector." in key else key)


def read_init_weights(path: str) -> tuple[TensorSource, dict[str, torch.Tensor]]:
    """Return (whole tensors, adapter halves by key) of a safetensors file laid over the model at the start.

    Names are those of the original's `named_parameters()`, under peft too.
    """
    files = WeightFiles.open_files([path])
    adapters = {key: files.read(key).clone() for key in files.keys() if ".lora_" in key}
    whole = Renamed(files, lambda key: None if ".lora_" in key else base_name(key))
    return whole, adapters


def has_positions(source: TensorSource) -> bool:
    """Whether a tuned position table is among the tensors."""
    return any(key.startswith(TOWER_PREFIX) and "position_embedding" in key for key in source.keys())
