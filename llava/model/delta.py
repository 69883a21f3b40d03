"""Delta weights: what a fine-tuned model adds to its base, made and applied tensor by tensor.

Models over LLaMA were once published as differences to it (spec 2.7). A delta is a checkpoint in the target's
layout whose language-model tensors are target - base; tensors that the base has not (projector of any form,
vision tower) are the target's own. Vocabulary tables may have more rows in the target: the common rows hold
differences, the others are the target's own. Used by `apply_delta` and `make_delta`.

Sums are computed one precision wider and rounded once. That gives the target back bit for bit wherever the
difference is smaller than the target's value, in any dtype, and within half a unit in the last place of the
difference elsewhere. On published fp16 deltas it equals the original's fp16 sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llava.errors import CheckpointError, WeightsError
from llava.model.locating import checkpoint_folder
from llava.model.rewriting import rewrite
from llava.model.sources import TensorSource
from llava.model.weights import WeightFiles

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_TARGETS_OWN = ("mm_projector", "vision_tower", "image_newline", "vision_resampler")
_COMPUTED = ("rotary_emb.inv_freq", "position_ids")
"""Buffers of old checkpoints that are computed and not learnt."""
_MAX_LISTED = 5


@dataclass
class Exactness:
    """How well target = base + delta holds after rounding."""

    num_values: int = 0
    num_changed: int = 0
    max_error: float = 0.0

    def add(self, wanted: torch.Tensor, found: torch.Tensor) -> None:
        """Count one tensor."""
        error = (wanted.double() - found.double()).abs()
        self.num_values += error.numel()
        self.num_changed += int((error > 0).sum())
        self.max_error = max(self.max_error, float(error.max()) if error.numel() else 0.0)

    def describe(self) -> str:
        """Say it in one line."""
        if self.num_changed == 0:
            return f"applying the delta gives all {self.num_values} values back exactly"
        return (
            f"applying the delta gives {self.num_values - self.num_changed} of {self.num_values} values back "
            f"exactly, and the rest within {self.max_error:.3g}"
        )


class Combined:
    """other + sign * base as a source, with `other`'s names, shapes and dtypes."""

    def __init__(
        self,
        base: TensorSource,
        other: TensorSource,
        sign: Literal[1, -1],
        *,
        exactness: Exactness | None = None,
    ) -> None:
        """Match the tensors by name and shape; raises WeightsError for what cannot be base and fine-tuned.

        exactness: counts, with every tensor read, how well the inverse operation gives `other` back.
        """
        self._base = base
        self._other = other
        self._sign = sign
        self._exactness = exactness
        self._shared = _match(base, other)

    def keys(self) -> Iterable[str]:
        """Return the names of the delta or target."""
        return self._other.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return self._other.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        """Return the tensor's dtype."""
        return self._other.dtype(key)

    def read(self, key: str) -> torch.Tensor:
        """Return the sum or difference, or the tensor itself when the base has none of its name."""
        tensor = self._other.read(key)
        if key not in self._shared:
            return tensor
        base = self._base.read(key)
        result = combine(base, tensor, self._sign)
        if self._exactness is not None:
            inverse: Literal[1, -1] = -1 if self._sign == 1 else 1
            self._exactness.add(tensor, combine(base, result, inverse))
        return result


def combine(base: torch.Tensor, other: torch.Tensor, sign: Literal[1, -1]) -> torch.Tensor:
    """Return other + sign * base on their common rows and columns, in other's dtype, rounded once."""
    wide = torch.float64 if torch.float32 in (base.dtype, other.dtype) else torch.float32
    common = tuple(slice(0, min(sizes)) for sizes in zip(base.shape, other.shape, strict=True))
    result = other.to(wide, copy=True)
    result[common] += sign * base[common].to(wide)
    return result.to(other.dtype)


def apply_delta(base: str | Path, delta: str | Path, target: str | Path) -> Path:
    """Write base + delta to the new folder `target`, with the delta's config and tokenizer.

    Raises CheckpointError or WeightsError when they do not belong together; then nothing is written.
    """
    base_files, delta_files, folder = _open(base, delta)
    if not _is_difference(base_files, delta_files):
        raise CheckpointError(
            f"{delta} is a whole model, not a delta", remedy="Load it as it is, without apply_delta."
        )
    rewrite(Combined(base_files, delta_files, 1), folder, Path(target))
    return Path(target)


def make_delta(base: str | Path, target: str | Path, delta: str | Path) -> Exactness:
    """Write target - base to the new folder `delta`, with the target's config and tokenizer.

    Returns how exactly `apply_delta` will give the target back. Raises as `apply_delta`.
    """
    base_files, target_files, folder = _open(base, target)
    if _is_difference(base_files, target_files):
        raise CheckpointError(f"{target} is a delta already", remedy="Give the whole model as the target.")
    exactness = Exactness()
    rewrite(Combined(base_files, target_files, -1, exactness=exactness), folder, Path(delta))
    return exactness


def upload(folder: Path, repo_id: str) -> None:
    """Put a folder into a repository of the hub, which is made when it is not there.

    Raises CheckpointError when the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo_id)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{folder} is written, and could not be put on the hub as {repo_id} ({reason})",
            remedy="Log in with `hf auth login`, and upload the folder.",
        ) from error


def _open(base: str | Path, other: str | Path) -> tuple[WeightFiles, WeightFiles, Path]:
    folder = checkpoint_folder(other)
    return WeightFiles.open(checkpoint_folder(base)), WeightFiles.open(folder), folder


def _is_difference(base: TensorSource, other: TensorSource) -> bool:
    """Whether `other` is a delta: its final norm is then near 0, and a model's is near the base's."""
    keys = set(other.keys()) & set(base.keys())
    key = next((key for key in ("model.norm.weight", "transformer.norm_f.weight") if key in keys), None)
    if key is None:
        raise WeightsError(
            "The two checkpoints have no final norm in common",
            remedy="Give a language model as the base, and a model that was trained from it.",
        )
    norm, base_norm = other.read(key).float(), base.read(key).float()
    return bool(norm.abs().mean() < 0.5 * base_norm.abs().mean())


def _match(base: TensorSource, other: TensorSource) -> set[str]:
    """Return the names that both have; raises WeightsError that lists what does not fit."""
    base_keys, other_keys = set(base.keys()), set(other.keys())
    problems = [
        f"{key} is missing from the fine-tuned model or delta"
        for key in sorted(base_keys - other_keys)
        if not key.endswith(_COMPUTED)
    ]
    shared: set[str] = set()
    for key in sorted(other_keys):
        if key in base_keys:
            shared.add(key)
            problems += _shape_problems(key, base.shape(key), other.shape(key))
        elif not any(part in key for part in _TARGETS_OWN) and not key.endswith(_COMPUTED):
            problems.append(f"{key} is missing from the base")
    if problems:
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise WeightsError(
            f"The base is not what the model was trained from: {'; '.join(problems[:_MAX_LISTED])}{more}",
            remedy="Give the base and the fine-tuned model (or delta) of the same architecture and size.",
        )
    return shared


def _shape_problems(key: str, base: tuple[int, ...], other: tuple[int, ...]) -> list[str]:
    if base == other or (key in _TABLES and len(base) == len(other) == 2 and base[1] == other[1]):
        return []
    return [f"{key} has shape {list(other)}, and {list(base)} in the base"]
