"""The global batch is stated once; what a process does per pass follows, or is checked."""

from __future__ import annotations

from typing import NamedTuple

from llava.errors import ConfigError
from llava.train.config import TrainConfig

DEFAULT_MICRO_BATCH = 8
"""Most samples of a forward pass where neither the recipe nor a flag says how many."""


class Batches(NamedTuple):
    """How one optimizer step's samples are spread."""

    global_batch: int
    """Samples of an optimizer step over all ranks."""
    micro_batch: int
    """Samples of one forward pass of a rank; packed: of this many at full length it has the tokens."""
    accumulation: int
    """Forward passes of a rank in a step; packed: as many as full-length samples would take."""

    def arithmetic(self, world_size: int) -> str:
        """Return the product in words."""
        return (
            f"{self.global_batch} samples a step = {self.micro_batch} a pass "
            f"x {self.accumulation} passes x {world_size} processes"
        )


def derive_batches(config: TrainConfig, world_size: int) -> Batches:
    """Return the batch sizes of a run on `world_size` processes.

    Without packing the three numbers times the processes must multiply exactly; with it only numbers that are
    all stated must, because bins are filled by tokens. Raises ConfigError that shows the arithmetic.
    """
    run = config.run
    for name in ("global_batch", "micro_batch", "accumulation"):
        value = getattr(run, name)
        if value is not None and value < 1:
            raise ConfigError(f"run.{name} is {value}", remedy="It is a whole number from 1.")
    if run.global_batch is None:
        micro_batch = run.micro_batch or DEFAULT_MICRO_BATCH
        accumulation = run.accumulation or 1
        return Batches(micro_batch * accumulation * world_size, micro_batch, accumulation)
    micro_batch = run.micro_batch or _micro_batch(run.global_batch, run.accumulation, world_size)
    accumulation = run.accumulation or -(-run.global_batch // (micro_batch * world_size))
    found = Batches(run.global_batch, micro_batch, accumulation)
    is_stated = run.micro_batch is not None and run.accumulation is not None
    if micro_batch * accumulation * world_size != run.global_batch and (is_stated or not config.data.packing):
        raise _mismatch(found, world_size)
    return found


def _micro_batch(global_batch: int, accumulation: int | None, world_size: int) -> int:
    """Return the samples of a pass: what accumulation leaves, else the largest divisor up to the default."""
    share = max(1, global_batch // world_size)
    if accumulation is not None:
        return max(1, share // accumulation)
    return max(size for size in range(1, min(share, DEFAULT_MICRO_BATCH) + 1) if share % size == 0)


def _mismatch(found: Batches, world_size: int) -> ConfigError:
    product = found.micro_batch * found.accumulation * world_size
    return ConfigError(
        f"run.global_batch is {found.global_batch}, but run.micro_batch {found.micro_batch} x "
        f"run.accumulation {found.accumulation} x {world_size} processes = {product}",
        remedy="State global_batch and at most one of the others, and a global_batch that the number of "
        "processes divides.",
    )
