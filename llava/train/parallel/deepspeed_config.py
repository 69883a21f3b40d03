"""A DeepSpeed JSON file, as the original's scripts/zero2.json, made into what `deepspeed.initialize` takes.

"auto" stood for values that transformers' Trainer filled in; here they come from the run. Ours alone,
whatever the file says: batch sizes and accumulation, since a step may have any number of micro-batches; the
optimizer; the learning rate (the original's zero3_offload.json silently replaced the cosine schedule by
WarmupLR); clipping. A section that loses its effect so is named in a warning.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava.errors import ConfigError
from llava.files import read_json
from llava.model.device import DTYPES

_OURS = {
    "optimizer": "the optimizer is what the recipe's optimizer section says (--optimizer.name, --optim)",
    "scheduler": "the learning rate follows --optimizer.schedule (--lr_scheduler_type)",
    "gradient_clipping": "gradients are clipped at --optimizer.max_grad_norm (--max_grad_norm)",
    "train_batch_size": "the batch is --run.global_batch",
    "train_micro_batch_size_per_gpu": "the micro-batch is --run.micro_batch (--per_device_train_batch_size)",
    "gradient_accumulation_steps": "accumulation follows from --run.global_batch and --run.micro_batch",
}
_MISSPELT = ("gather_16bit_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save")
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": DTYPES["float16"]}


class Resolved(NamedTuple):
    """A configuration without "auto", and what was left out."""

    config: dict[str, Any]
    warnings: list[str]

    @property
    def stage(self) -> int:
        """ZeRO stage, 1 to 3."""
        return int(self.config["zero_optimization"]["stage"])

    @property
    def offloads_optimizer(self) -> bool:
        """Whether the optimizer runs on the CPU."""
        section = self.config["zero_optimization"].get("offload_optimizer") or {}
        return section.get("device", "none") != "none"


def read_deepspeed(path: str) -> dict[str, Any]:
    """Read the file; raises FileError when it is missing or no JSON, ConfigError without a ZeRO stage."""
    config = read_json(Path(path))
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise ConfigError(
            f"{path} has zero_optimization.stage {stage!r}, and 1, 2 or 3 are known",
            remedy="Use run.engine ddp for training without ZeRO.",
        )
    read: dict[str, Any] = config
    return read


def resolve(
    config: dict[str, Any], *, world_size: int, hidden_size: int, compute_dtype: torch.dtype
) -> Resolved:
    """Replace every "auto" and take out what is ours.

    hidden_size: of the language model; buckets are as large as its square, as transformers sets them.
    Raises ConfigError when the file asks for another precision than `compute_dtype`, or for an "auto" that
    nobody knows.
    """
    config = copy.deepcopy(config)
    warnings = [
        f"{key} in the DeepSpeed file has no effect: {reason}"
        for key, reason in _OURS.items()
        if _holds_values(config.pop(key, None))
    ]
    zero = config["zero_optimization"]
    misspelt, right = _MISSPELT
    if misspelt in zero:
        zero.setdefault(right, zero.pop(misspelt))
    for key, number in (
        ("reduce_bucket_size", hidden_size**2),
        ("stage3_prefetch_bucket_size", int(0.9 * hidden_size**2)),
        ("stage3_param_persistence_threshold", 10 * hidden_size),
    ):
        if zero.get(key) == "auto":
            zero[key] = number
    _resolve_precision(config, compute_dtype)
    # One more than one: with offload DeepSpeed keeps gradients over micro-steps only then. Their number per
    # step is ours to choose (`set_gradient_accumulation_boundary`), and nothing is divided by this one.
    config.update(
        train_micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=2,
        train_batch_size=2 * world_size,
        zero_allow_untested_optimizer=True,
    )
    if config.get("steps_per_print") in (None, "auto"):
        config["steps_per_print"] = 2**31 - 1
    left = _find_auto(config, "")
    if left:
        raise ConfigError(f"the DeepSpeed file has {left} auto, which is not known", remedy="Give a value.")
    return Resolved(config, warnings)


def _resolve_precision(config: dict[str, Any], compute_dtype: torch.dtype) -> None:
    for key, dtype in _PRECISIONS.items():
        section = config.setdefault(key, {"enabled": "auto"})
        if section.get("enabled", "auto") == "auto":
            section["enabled"] = compute_dtype == dtype
        if section["enabled"] and compute_dtype != dtype:
            raise ConfigError(
                f"the DeepSpeed file enables {key}, and the run computes in "
                f"{str(compute_dtype).removeprefix('torch.')}",
                remedy=f"Set run.precision to {str(dtype).removeprefix('torch.')}, or {key}.enabled to auto.",
            )
    if config["bf16"]["enabled"]:
        # Without this a gradient that is not finite would go into the weights.
        config["bf16"].setdefault("check_grad_overflow", True)
    if compute_dtype != torch.float32:
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")


def _holds_values(section: object) -> bool:
    """Whether a section says anything besides "auto"."""
    if isinstance(section, dict):
        return bool(section)
    return section is not None and section != "auto"


def _find_auto(value: object, path: str) -> str:
    """Return the path of the first "auto" in a configuration, or nothing."""
    if value == "auto":
        return path
    if isinstance(value, dict):
        places = (_find_auto(inner, f"{path}.{key}" if path else key) for key, inner in value.items())
        return next((place for place in places if place), "")
    return ""
