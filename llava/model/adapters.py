"""LoRA checkpoints: an adapter merged into its base language model, one tensor at a time.

A LoRA run of the original leaves adapter_config.json, adapter_model.{safetensors,bin} and
non_lora_trainables.bin (spec 2.3). `MergedWeights` looks like the full checkpoint that merging would give:
names and shapes are known at once, and W + scale * B A is computed when a tensor is read. Place in the flow:
`assembling` wraps the base's weights in it.

r rank; A float[r, in], B float[out, r], W float[out, in].
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.errors import CheckpointError, ConfigError, WeightsError
from llava.model.locating import checkpoint_folder
from llava.model.sources import Layered, Renamed, TensorSource
from llava.model.weights import WeightFiles

ADAPTER_CONFIG = "adapter_config.json"
_TRAINABLES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.[^.]+)?\.weight")
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on bare parameters",
    "lora_bias": "a bias on B",
    "layer_replication": "replicated layers",
}
"""Options that change what the tensors mean; each one set is an error."""


@dataclass(frozen=True)
class LoraRules:
    """What of adapter_config.json decides the merged weights."""

    rank: int
    alpha: float
    is_rank_stabilised: bool
    """Scale by alpha / sqrt(r) and not alpha / r."""
    is_transposed: bool
    """`fan_in_fan_out`: the base stores W as [in, out]."""
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str = ADAPTER_CONFIG) -> LoraRules:
        """Read adapter_config.json; raises CheckpointError for a kind of adapter that is not plain LoRA."""
        kind = config.get("peft_type", "LORA")
        if kind != "LORA":
            raise CheckpointError(
                f"{source} describes a {kind} adapter", remedy="Merge it with the peft library first."
            )
        for field, meaning in _REFUSED.items():
            if config.get(field):
                raise CheckpointError(
                    f"{source} uses {meaning} ({field}), which is not supported",
                    remedy="Merge it with the peft library first.",
                )
        for field in ("r", "lora_alpha"):
            value = config.get(field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ConfigError(f"{field} is {value!r} in {source}", remedy="It must be a number above 0.")
        return cls(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            is_rank_stabilised=bool(config.get("use_rslora")),
            is_transposed=bool(config.get("fan_in_fan_out")),
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
        )

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, by its name in the base."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return the factor of B A."""
        rank, alpha = self.rank_of(module), float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank


class MergedWeights:
    """A base's tensors with LoRA products added to those that have them; these are float32."""

    def __init__(self, base: TensorSource, adapter: TensorSource, rules: LoraRules) -> None:
        """Match every LoRA pair with a tensor of `base`, from shapes alone.

        adapter: names `MODULE.lora_A.weight` and `MODULE.lora_B.weight`, MODULE as in the base.
        Raises WeightsError for a half pair, a wrong shape, or a module that the base has not.
        """
        self._base = base
        self._adapter = adapter
        self._rules = rules
        pairs: dict[str, dict[str, str]] = {}
        for key in adapter.keys():
            match = _LORA_KEY.fullmatch(key)
            if match is None:
                raise WeightsError(f"The adapter holds {key}, which is no part of a LoRA pair")
            pairs.setdefault(match["module"], {})[match["half"]] = key
        self._pairs = {f"{module}.weight": halves for module, halves in pairs.items()}
        base_keys = set(base.keys())
        for key, halves in self._pairs.items():
            self._check(key, halves, base_keys)

    def keys(self) -> Iterable[str]:
        """Return the base's names in its order."""
        return self._base.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the tensor's shape, which is the base's."""
        return self._base.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        """Return float32 for a merged tensor, else the base's dtype."""
        return torch.float32 if key in self._pairs else self._base.dtype(key)

    def read(self, key: str) -> torch.Tensor:
        """Return W + scale * B A in float32 for a merged tensor, else the base's."""
        weight = self._base.read(key)
        if key not in self._pairs:
            return weight
        halves = self._pairs[key]
        b = self._adapter.read(halves["B"]).float()
        a = self._adapter.read(halves["A"]).float()
        product = (b @ a) * self._rules.scale_of(key.removesuffix(".weight"))  # [out, in]
        return weight.float() + (product.t() if self._rules.is_transposed else product)

    def _check(self, key: str, halves: Mapping[str, str], base_keys: set[str]) -> None:
        module = key.removesuffix(".weight")
        if set(halves) != {"A", "B"}:
            raise WeightsError(
                f"The adapter has lora_{next(iter(halves))} of {module} and not the other half"
            )
        if key not in base_keys:
            raise WeightsError(
                f"The adapter changes {key}, which the base has not",
                remedy="Give the base that the adapter was trained on.",
            )
        rank = self._rules.rank_of(module)
        shape = self._base.shape(key)
        out_in = shape[::-1] if self._rules.is_transposed else shape
        wanted = {"A": (rank, out_in[-1]), "B": (out_in[0], rank)}
        for half, name in halves.items():
            if len(shape) != 2 or self._adapter.shape(name) != wanted[half]:
                raise WeightsError(
                    f"{name} has shape {list(self._adapter.shape(name))}, and rank {rank} over a base of "
                    f"{list(shape)} needs {list(wanted[half])}",
                    remedy="Give the base that the adapter was trained on.",
                )


def merged_source(folder: Path, adapter_config: Mapping[str, Any], base: TensorSource) -> TensorSource:
    """Return the full checkpoint that an adapter folder makes of `base`, under the original's names.

    Tensors of non_lora_trainables (projector, enlarged vocabulary) come before the base's; the adapter is
    then merged into what they make. Raises CheckpointError or WeightsError for what cannot be merged exactly.
    """
    rules = LoraRules.from_config(adapter_config, source=str(folder / ADAPTER_CONFIG))
    adapter = Renamed(WeightFiles.open(folder, "adapter_model"), base_name)
    low_rank = Renamed(adapter, lambda key: key if ".lora_" in key else None)
    # Biases and modules_to_save: whole tensors that the adapter puts in the base's place.
    whole = Renamed(adapter, lambda key: None if ".lora_" in key else _plain_name(key))
    known = set(base.keys())
    for key in whole.keys():
        if key not in known:
            raise WeightsError(f"The adapter holds {key}, which the base has not")
    layers: list[TensorSource] = [whole, base]
    if any((folder / name).is_file() for name in _TRAINABLES):
        files = WeightFiles.open(folder, "non_lora_trainables")
        layers.insert(0, Renamed(files, base_name))
    return MergedWeights(Layered(*layers), low_rank, rules)


def base_folder(folder: Path, adapter_config: Mapping[str, Any], given: str | None) -> Path:
    """Return the folder of an adapter's base: the one given, else what adapter_config.json names.

    A name is tried as a path from the working directory and beside the adapter, then as a hub id.
    Raises CheckpointError that says to pass --model-base.
    """
    if given is not None:
        return checkpoint_folder(given)
    remedy = "Pass the language model it was trained on: --model-base, or base= in Python."
    stated = adapter_config.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} does not name its base model", remedy=remedy)
    path = Path(stated).expanduser()
    beside = folder.resolve().parent
    for candidate in (path, beside / path, beside / path.name):
        if candidate.is_dir():
            return candidate
    try:
        return checkpoint_folder(stated)
    except CheckpointError as error:
        raise CheckpointError(
            f"The adapter {folder} is over {stated!r}, which is neither here nor beside it", remedy=remedy
        ) from error


def base_name(key: str) -> str:
    """Return a tensor's name in the base model: without what peft and the trainer put before it."""
    key = key.removeprefix("base_model.")
    for prefix in ("model.model.", "model.transformer.", "model.lm_head."):
        if key.startswith(prefix):
            return key.removeprefix("model.")
    return key


def _plain_name(key: str) -> str:
    """Drop the wrappers that older peft versions left in the names of whole tensors."""
    return re.sub(r"\.(base_layer|modules_to_save(\.[^.]+)?)(?=\.)", "", key)


def _by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as peft does."""
    for suffix, value in pattern.items():
        try:
            is_match = re.fullmatch(rf"(.*\.)?({suffix})", module) is not None
        except re.error as error:
            raise ConfigError(f"{suffix!r} in {ADAPTER_CONFIG} is no pattern: {error}") from error
        if is_match:
            return value
    return default
