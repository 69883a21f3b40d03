"""Weights, gradients and optimizer state spread over the ranks: FSDP2 with distributed checkpoints.

Every layer of the language model and of the tower is a unit that is gathered when it runs and dropped after;
what is left (embeddings, projector, head) is one more. Frozen weights are spread too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from llava.errors import CheckpointError, ConfigError
from llava.train.parallel.ddp import GroupEngine
from llava.train.parallel.engine import MakeOptimizer, trained_parameters

_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


class FsdpEngine(GroupEngine):
    """FSDP2; see `Engine`."""

    is_sharded = True

    def prepare(
        self, module: nn.Module, make_optimizer: MakeOptimizer, *, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        """Shard the module; raises ConfigError for weights that are no floating-point numbers."""
        _check_shardable(module)
        is_mixed = compute_dtype != torch.float32
        policy = MixedPrecisionPolicy(
            param_dtype=compute_dtype if is_mixed else None, reduce_dtype=torch.float32 if is_mixed else None
        )
        module = module.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        with self.group.watch("sharding the model"):
            for layer in layers_of(module):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
            fully_shard(module, mesh=mesh, mp_policy=policy)
        super().prepare(module, make_optimizer, compute_dtype=compute_dtype)

    def forward(self, *args: Any, is_last: bool = True) -> Any:
        """Call the module, layer by layer gathered."""
        del is_last
        with self.group.watch("forward"):
            return self.module(*args)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients; the last call of a step sums them over ranks."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(is_last)
        with self.group.watch("backward"):
            # FSDP divides by the number of ranks.
            (loss * (self._scale.value * self.world_size)).backward()

    def _norm(self) -> float:
        norm = torch.nn.utils.get_total_norm(self._gradients())
        with self.group.watch("the gradient norm"):
            return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, sharded as it lies here."""
        trained = {name for name, _ in trained_parameters(self.module)}
        model = get_model_state_dict(self.module, options=_TRAINED_ONLY)
        return {
            "model": {name: value for name, value in model.items() if name in trained},
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer, options=_TRAINED_ONLY),
            "scale": torch.tensor([self._scale.value, self._scale.num_clean], dtype=torch.float64),
        }

    def save(self, folder: Path) -> None:
        """Write a distributed checkpoint, each rank its shards."""
        with self.group.watch("saving"):
            save(self._state(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Read a distributed checkpoint of any number of ranks; raises CheckpointError."""
        state = self._state()
        with self.group.watch("loading"):
            try:
                load(state, checkpoint_id=folder)
            except (CheckpointException, OSError) as error:
                raise CheckpointError(
                    f"{folder} cannot be resumed from: {_first_failure(error)}",
                    remedy="Resume with the stage and model it was saved with, or from an older checkpoint.",
                ) from error
        set_model_state_dict(self.module, state["model"], options=_TRAINED_ONLY)
        set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"], options=_TRAINED_ONLY)
        value, num_clean = state["scale"].tolist()
        self._scale.restore({"value": value, "num_clean": num_clean})

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights on rank 0's CPU, gathered one by one."""
        gathered = {}
        with self.group.watch("gathering the weights"):
            for name, parameter in trained_parameters(self.module):
                value = parameter.detach()
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                if self.rank == 0:
                    gathered[name] = whole.cpu().clone()
        return gathered


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of every stack in the module: the members of its outermost ModuleLists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers_of(child)


def _check_shardable(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigError(
                f"run.engine is 'fsdp', and {name} is quantised ({parameter.dtype}), which it cannot spread",
                remedy="Use run.engine ddp for qlora.",
            )


def _first_failure(error: BaseException) -> str:
    """Return the first rank's own reason, which torch wraps in a table of all ranks' tracebacks."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    return next((str(failure[0]).split("\n")[0] for failure in failures), str(error).split("\n")[0])
