"""What the training loop needs from an engine, and what all engines share.

    engine.prepare(module, make_optimizer)
    for each step:
        for each micro-batch:
            losses = engine.forward(batch, is_last=...)
            engine.backward(losses.total / num_targets_of_the_step, is_last=...)
        norm = engine.step(max_grad_norm=1.0, lrs=[...])

Gradients are the SUM over ranks and micro-steps of the gradients of the losses given to `backward`: a loop
that divides each loss by the step's number of targets over all ranks gets the gradient of the mean over
targets, however the samples are spread.

Contract: every forward pass of `module` uses every trained parameter, on every rank (`TrainingModel` sees to
it), so nobody looks for unused ones (`find_unused_parameters`); one that is missed is an error, not a wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

T = TypeVar("T")
MakeOptimizer = Callable[[nn.Module], Optimizer]
"""Builds the optimizer from the module whose parameters are final: sharded where the engine shards, under the
names they had before. Group i of it gets the i-th learning rate of every step."""


class Engine(Protocol):
    """Runs one module on this process as one of `world_size`."""

    rank: int
    world_size: int
    device: torch.device
    is_sharded: bool
    """Whether frozen weights too are spread over the ranks, so that all ranks must call every part."""
    is_rescaling: bool
    """Whether the last step changed nothing because float16 overflowed, which the next loss scale mends."""

    def prepare(
        self, module: nn.Module, make_optimizer: MakeOptimizer, *, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        """Move, wrap or shard the module, and build the optimizer; call once, on every rank.

        compute_dtype: of matrix products. Raises ConfigError when the engine cannot train this module.
        """

    def forward(self, *args: Any, is_last: bool = True) -> Any:
        """Call the module through the engine's wrapper; `is_last` as in the `backward` that follows."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients of `loss: float[]`; `is_last`: `step` comes next, so ranks sum now."""

    def step(self, *, max_grad_norm: float, lrs: Sequence[float]) -> float:
        """Set the groups' learning rates, clip, update, forget the gradients.

        Returns the norm of all gradients before clipping, the same on every rank; max_grad_norm 0: no
        clipping. A norm that is not finite is returned and nothing is updated (float16: the loss scale is
        halved besides).
        """

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks of a tensor of one shape on all."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on all ranks."""

    def save(self, folder: Path) -> None:
        """Write trained weights and optimizer state into an existing folder; call on every rank."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; raises CheckpointError when it does not fit."""

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return, on rank 0, trained weights on the CPU by the module's names; elsewhere an empty dict."""

    def close(self) -> None:
        """Leave the process group; call on every rank when all went well."""


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of what learns, each parameter once."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def set_learning_rates(optimizer: Optimizer, lrs: Sequence[float]) -> None:
    """Give group i of the optimizer the i-th rate."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr


class LossScale:
    """Keeps float16 gradients from underflowing: losses are multiplied, gradients divided again.

    Doubles after `interval` steps without overflow and halves at each overflow, as torch's GradScaler, which
    knows no sharded gradients on every device. 1 and constant in the other dtypes.
    """

    def __init__(self, dtype: torch.dtype, *, interval: int = 2000) -> None:
        """Start at 2^16 for a dtype whose smallest normal number is as large as float16's."""
        self._is_active = torch.finfo(dtype).tiny > torch.finfo(torch.bfloat16).tiny
        self.value = 2.0**16 if self._is_active else 1.0
        self.num_clean = 0
        self._interval = interval

    def update(self, norm: float) -> bool:
        """Learn from the norm whether the step overflowed; returns whether a lower scale helps."""
        if not self._is_active:
            return False
        if not math.isfinite(norm):
            is_lower = self.value > 1
            self.value, self.num_clean = max(self.value / 2, 1.0), 0
            return is_lower
        self.num_clean += 1
        if self.num_clean == self._interval:
            self.value, self.num_clean = self.value * 2, 0
        return False

    def state(self) -> dict[str, float]:
        """Return what a checkpoint must hold."""
        return {"value": self.value, "num_clean": self.num_clean}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        self.value, self.num_clean = float(state["value"]), int(state["num_clean"])
