"""One process without a process group; the engines of several build on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from llava.errors import ConfigError
from llava.train.parallel.engine import LossScale, MakeOptimizer, set_learning_rates, trained_parameters
from llava.train.parallel.state import load_state, save_state

T = TypeVar("T")


class SingleEngine:
    """Trains on one device; see `Engine`."""

    is_sharded = False

    def __init__(self, device: torch.device) -> None:
        """Compute on `device`."""
        self.rank = 0
        self.world_size = 1
        self.is_rescaling = False
        self.device = device
        self._module: nn.Module | None = None
        self._optimizer: Optimizer | None = None
        self._scale = LossScale(torch.float32)

    @property
    def module(self) -> nn.Module:
        """The module given to `prepare`, without a wrapper."""
        assert self._module is not None, "prepare() comes first"
        return self._module

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that steps."""
        assert self._optimizer is not None, "prepare() comes first"
        return self._optimizer

    def prepare(
        self, module: nn.Module, make_optimizer: MakeOptimizer, *, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        """Move the module to the device and build the optimizer; raises ConfigError when nothing learns."""
        if next(trained_parameters(module), None) is None:
            raise ConfigError("nothing learns: every parameter is frozen", remedy="Choose another stage.")
        self._scale = LossScale(compute_dtype)
        self._module = self._place(module)
        self._optimizer = make_optimizer(self._module)

    def _place(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def forward(self, *args: Any, is_last: bool = True) -> Any:
        """Call the module."""
        del is_last
        return self.module(*args)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients of `loss: float[]`."""
        del is_last
        (loss * self._scale.value).backward()

    def step(self, *, max_grad_norm: float, lrs: Sequence[float]) -> float:
        """Clip, update and forget the gradients; returns their norm before clipping, see `Engine`."""
        set_learning_rates(self.optimizer, lrs)
        norm = self._norm() / self._scale.value
        if math.isfinite(norm):
            self._shrink(norm, max_grad_norm)
            self.optimizer.step()
        self.is_rescaling = self._scale.update(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for _, p in trained_parameters(self.module) if p.grad is not None]

    def _norm(self) -> float:
        """Return the norm of all gradients over all ranks, still multiplied by the loss scale."""
        return float(torch.nn.utils.get_total_norm(self._gradients()))

    @torch.no_grad()
    def _shrink(self, norm: float, max_grad_norm: float) -> None:
        """Undo the loss scale and clip, in one multiplication; the coefficient is torch's."""
        clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm > 0 else 1.0
        factor = clip / self._scale.value
        if factor != 1.0:
            torch._foreach_mul_(self._gradients(), factor)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values`."""
        return values

    def any(self, flag: bool) -> bool:
        """Return `flag`."""
        return flag

    def barrier(self) -> None:
        """Return at once."""

    def broadcast(self, value: T) -> T:
        """Return `value`."""
        return value

    def save(self, folder: Path) -> None:
        """Write trained weights and optimizer state; rank 0 writes for all."""
        if self.rank == 0:
            save_state(folder, self.module, self.optimizer, extra=self._scale.state())
        self.barrier()

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, with any number of ranks; raises CheckpointError."""
        self._scale.restore(load_state(folder, self.module, self.optimizer))

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights on the CPU by the module's names, on rank 0."""
        if self.rank != 0:
            return {}
        return {name: p.detach().cpu().clone() for name, p in trained_parameters(self.module)}

    def close(self) -> None:
        """Nothing to leave."""
