"""Every rank holds everything; gradients are summed in buckets while the backward pass still runs (DDP)."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llava.train.parallel.engine import MakeOptimizer
from llava.train.parallel.group import Group
from llava.train.parallel.single import SingleEngine

T = TypeVar("T")
_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
_CONSTANT_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}
"""Our buffers never change, so none is sent in a forward pass; torch renamed the argument in 2.13."""


class GroupEngine(SingleEngine):
    """What engines over torch's process group share; see `Engine`."""

    def __init__(self, group: Group) -> None:
        """Train as one rank of `group`."""
        super().__init__(group.device)
        self.group = group
        self.rank = group.rank
        self.world_size = group.world_size

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks."""
        return self.group.sum(values)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return self.group.any(flag)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.group.barrier()

    def broadcast(self, value: T) -> T:
        """Return rank 0's value."""
        return self.group.broadcast(value)

    def close(self) -> None:
        """Leave the process group."""
        self.group.close()


class DdpEngine(GroupEngine):
    """DistributedDataParallel; see `Engine`."""

    def __init__(self, group: Group) -> None:
        """Train as one rank of `group`."""
        super().__init__(group)
        self._wrapped: DistributedDataParallel | None = None
        self._sums = True

    def prepare(
        self, module: nn.Module, make_optimizer: MakeOptimizer, *, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        """Wrap the module; rank 0's weights go to all."""
        super().prepare(module, make_optimizer, compute_dtype=compute_dtype)
        with self.group.watch("wrapping the model"):
            self._wrapped = DistributedDataParallel(
                self.module, gradient_as_bucket_view=True, **_CONSTANT_BUFFERS
            )

    def forward(self, *args: Any, is_last: bool = True) -> Any:
        """Call the module; DDP decides here whether the backward pass will sum over ranks."""
        assert self._wrapped is not None, "prepare() comes first"
        self._sums = is_last
        with self.group.watch("forward"), nullcontext() if is_last else self._wrapped.no_sync():
            return self._wrapped(*args)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients; the last call of a step sums them over ranks."""
        assert is_last == self._sums, "forward() and backward() of one micro-step disagree about is_last"
        with self.group.watch("backward"):
            # DDP divides by the number of ranks.
            (loss * (self._scale.value * self.world_size)).backward()
