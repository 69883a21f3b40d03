"""DeepSpeed ZeRO: optimizer state (stage 1), gradients (2) and weights (3) spread over the ranks.

DeepSpeed averages gradients over ranks and divides by the accumulation steps of its configuration; both are
undone. Checkpoints are DeepSpeed's own files (pickled; load none that a stranger made) and fit the number of
ranks that wrote them.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import pickle
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from llava import log
from llava.errors import CheckpointError, ConfigError, DependencyError
from llava.files import read_json, write_json
from llava.train.parallel.ddp import GroupEngine
from llava.train.parallel.deepspeed_config import Resolved, resolve
from llava.train.parallel.engine import MakeOptimizer, trained_parameters
from llava.train.parallel.group import Group

_TAG = "deepspeed"
_ABOUT = "deepspeed.json"
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, AssertionError, EOFError, pickle.UnpicklingError)
"""What DeepSpeed and torch raise for files that are missing, cut short or of another model."""
logger = log.get_logger(__name__)


def require_deepspeed(device: torch.device) -> None:
    """Make DeepSpeed ready for a device type; raises DependencyError when it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise DependencyError.of_extra("deepspeed", "deepspeed", "run.deepspeed")
    if device.type == "cpu":
        # DeepSpeed chooses by what is installed, and takes no argument.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory collectives are compiled at the first start, for two minutes, to save little here.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


class DeepSpeedEngine(GroupEngine):
    """ZeRO stages 1 to 3; see `Engine`."""

    def __init__(self, group: Group, config: dict[str, Any]) -> None:
        """Train as one rank of `group`; config: of `read_deepspeed`."""
        super().__init__(group)
        self._config = config
        self.is_sharded = config["zero_optimization"]["stage"] == 3
        self._engine: Any = None
        self._kept: list[int] = []

    def prepare(
        self, module: nn.Module, make_optimizer: MakeOptimizer, *, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        """Hand module and optimizer to DeepSpeed; the module is a `TrainingModel`.

        Raises ConfigError for a configuration that DeepSpeed refuses or that does not go with the run.
        """
        import deepspeed

        if next(trained_parameters(module), None) is None:
            raise ConfigError("nothing learns: every parameter is frozen", remedy="Choose another stage.")
        hidden_size = cast(Any, module).model.config.get_text_config().hidden_size
        resolved = resolve(
            self._config, world_size=self.world_size, hidden_size=hidden_size, compute_dtype=compute_dtype
        )
        if self.rank == 0:
            for warning in resolved.warnings:
                logger.warning(warning)
        _check_quantised(module, resolved)
        os.environ.setdefault("LOCAL_RANK", str(self.device.index or 0))
        optimizer = make_optimizer(module)
        # DeepSpeed takes out groups without parameters.
        self._kept = [number for number, group in enumerate(optimizer.param_groups) if group["params"]]
        if resolved.offloads_optimizer:
            optimizer = _on_cpu(optimizer)
        with self.group.watch("handing the model to DeepSpeed"):
            try:
                self._engine, *_ = deepspeed.initialize(
                    model=module, optimizer=optimizer, config=resolved.config, dist_init_required=False
                )
            except (ValueError, deepspeed.DeepSpeedConfigError) as error:
                raise ConfigError(f"DeepSpeed refuses its configuration: {error}") from error
        self._module = module
        self._optimizer = optimizer

    def forward(self, *args: Any, is_last: bool = True) -> Any:
        """Call the module; DeepSpeed sums over ranks in the backward pass that follows the last call."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        with self.group.watch("forward"):
            return self._engine(*args)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients; the last call of a step sums them over ranks."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        with self.group.watch("backward"):
            self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, *, max_grad_norm: float, lrs: Sequence[float]) -> float:
        """Clip, update and forget the gradients; returns their norm before clipping, see `Engine`."""
        zero = self._engine.optimizer
        for group, number in zip(zero.param_groups, self._kept, strict=True):
            group["lr"] = lrs[number]
        zero.clip_grad = max_grad_norm
        with self.group.watch("the optimizer step"):
            self._engine.step()
        self.is_rescaling = bool(zero.overflow and self._engine.fp16_enabled() and zero.loss_scale > 1)
        return math.inf if zero.overflow else float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's own files, each rank its part."""
        with self.group.watch("saving"):
            self._engine.save_checkpoint(
                str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
            )
        if self.rank == 0:
            write_json(folder / _ABOUT, self._about())
        self.barrier()

    def load(self, folder: Path) -> None:
        """Read DeepSpeed's own files, into an engine that has not stepped yet.

        Raises CheckpointError when they are damaged, of another model, stage or number of ranks.
        """
        about = read_json(folder / _ABOUT)
        if about != self._about():
            raise CheckpointError(
                f"{folder} was written by {about['world_size']} rank(s) of ZeRO stage {about['stage']}, and "
                f"this run has {self.world_size} of stage {self._about()['stage']}",
                remedy="Resume with those, or train with run.engine fsdp, which takes any number of ranks.",
            )
        with self.group.watch("loading"):
            try:
                path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
            except _DAMAGE as error:
                raise CheckpointError(
                    f"{folder} cannot be resumed from: {str(error).partition(chr(10))[0] or repr(error)}",
                    remedy="Resume from an older checkpoint.",
                ) from error
        if path is None:
            raise CheckpointError(f"{folder} holds no checkpoint of DeepSpeed")

    def _about(self) -> dict[str, int]:
        return {"world_size": self.world_size, "stage": self._config["zero_optimization"]["stage"]}

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights in float32 on rank 0's CPU, gathered one by one."""
        from deepspeed.utils import safe_get_full_fp32_param

        gathered = {}
        with self.group.watch("gathering the weights"):
            for name, parameter in trained_parameters(self.module):
                whole = safe_get_full_fp32_param(parameter)
                assert whole is not None, f"DeepSpeed does not know {name}"
                if self.rank == 0:
                    gathered[name] = whole.detach().cpu().clone()
        return gathered

    def close(self) -> None:
        """Release what DeepSpeed holds and leave the process group."""
        if self._engine is not None:
            self._engine.destroy()
        super().close()


def _check_quantised(module: nn.Module, resolved: Resolved) -> None:
    if resolved.stage < 3:
        return
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigError(
                f"ZeRO stage 3 cannot spread {name}, which is quantised ({parameter.dtype})",
                remedy="Use ZeRO stage 2 or run.engine ddp for qlora.",
            )


def _on_cpu(optimizer: Optimizer) -> Optimizer:
    """Return DeepSpeed's own AdamW for the CPU, with the groups and settings of torch's."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    if type(optimizer) is not torch.optim.AdamW:
        raise ConfigError(
            f"the DeepSpeed file offloads the optimizer, and {type(optimizer).__name__} cannot be",
            remedy="Set optimizer.name to adamw, or take offload_optimizer out of the file.",
        )
    wanted = ("params", "lr", "betas", "eps", "weight_decay")
    groups = [{key: group[key] for key in wanted} for group in optimizer.param_groups if group["params"]]
    try:
        made: Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True)
    except (RuntimeError, OSError, ImportError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"the DeepSpeed file offloads the optimizer, and the code for that cannot be compiled: {error}",
            remedy="Install a C++ compiler and ninja, or take offload_optimizer out of the file.",
        ) from error
    return made
