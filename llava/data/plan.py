"""Which sample goes to which rank and micro-batch in every step of a run.

Place in the flow: `scan` -> here -> `loader`. A plan is a pure function of the data's lengths and the
options, asked by step: a run that goes on at step n has the same samples there as one not interrupted. The
samples of a step do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llava.data.order import Indices, OrderMode, epoch_order
from llava.data.packing import QUADRATIC_COST, spread_packed, spread_padded
from llava.errors import ConfigError, DataError
from llava.files import read_json

if TYPE_CHECKING:
    from llava.data.records import Record
    from llava.data.scan import Scan


class Plan(Protocol):
    """The samples of every step of a run."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps that show every sample once."""
        ...

    def step(self, step: int) -> list[list[int]]:
        """Return for each slot its sample indices, maybe none, of a step counted from 0.

        Slot k is rank k % world_size in micro-step k // world_size; their number is a multiple of world_size.
        """
        ...


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is made."""

    global_batch: int
    """Samples per optimizer step over all ranks."""
    micro_batch: int
    """Samples per forward pass where rows are padded."""
    micro_tokens: int
    """Positions per forward pass where samples are packed."""
    seed: int
    mode: OrderMode = "random"
    packing: bool = True
    epochs: float = 1.0
    max_steps: int = -1
    """Over `epochs` when above 0."""
    keeps_order: bool = False
    """Padded: cut a step into micro-batches as its samples come (`loss_reduction="original"`)."""
    quadratic: float = QUADRATIC_COST
    """Weight of attention when packed rows are balanced: 1 / (12 * hidden size)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes under 1."""
        for name in ("global_batch", "micro_batch", "micro_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} is {getattr(self, name)}", remedy="Give 1 or more.")
        if self.max_steps < 1 and self.epochs <= 0:
            raise ConfigError(f"run.epochs is {self.epochs}", remedy="Give more than 0, or run.max_steps.")


def _always(samples: Indices, _: int) -> Indices:
    return samples


EpochSamples = Callable[[int], Indices]
"""Epoch, from 0 -> the samples it is made of: int64[M], the same number in every epoch."""


def make_plan(
    scan: Scan, options: PlanOptions, *, world_size: int, epoch_samples: EpochSamples | None = None
) -> Plan:
    """Plan a run over the usable samples.

    epoch_samples: what each epoch is made of, as a mixture's `epoch_indices` says; None: all samples, once.
    The last, smaller group of an epoch is a step too. Raises DataError when no sample is usable.
    """
    everything = np.arange(scan.num_samples, dtype=np.int64)
    return _EpochPlan(scan, options, world_size, epoch_samples or partial(_always, everything))


@dataclass
class _EpochPlan:
    """Epoch after epoch; keeps the orders of two, for the loader is ahead of the trainer where they meet."""

    scan: Scan
    options: PlanOptions
    world_size: int
    epoch_samples: EpochSamples
    num_steps: int = field(init=False)
    steps_per_epoch: float = field(init=False)
    _orders: dict[int, Indices] = field(default_factory=dict, init=False)
    _length: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._length = len(self._order_of(0))
        per_epoch = math.ceil(self._length / self.options.global_batch)
        self.steps_per_epoch = per_epoch
        # 1e-9: three tenths of ten steps are three, whatever floating point says.
        by_epochs = max(1, math.ceil(self.options.epochs * per_epoch - 1e-9))
        self.num_steps = self.options.max_steps if self.options.max_steps > 0 else by_epochs

    def step(self, step: int) -> list[list[int]]:
        epoch, place = divmod(step, int(self.steps_per_epoch))
        size = self.options.global_batch
        samples = self._order_of(epoch)[place * size : (place + 1) * size]
        lengths = self.scan.tokens[samples].tolist()
        return [[int(samples[place]) for place in slot] for slot in self._spread(lengths)]

    def _spread(self, lengths: Sequence[int]) -> list[list[int]]:
        options = self.options
        if options.packing:
            return spread_packed(
                lengths,
                num_ranks=self.world_size,
                micro_tokens=options.micro_tokens,
                quadratic=options.quadratic,
            )
        return spread_padded(
            lengths,
            num_ranks=self.world_size,
            micro_batch=options.micro_batch,
            keeps_order=options.keeps_order or options.mode.startswith("modality_length"),
        )

    def _order_of(self, epoch: int) -> Indices:
        if epoch not in self._orders:
            options = self.options
            order = epoch_order(
                self.scan,
                self.epoch_samples(epoch),
                mode=options.mode,
                seed=options.seed,
                epoch=epoch,
                global_batch=options.global_batch,
                micro_batch=min(options.micro_batch, options.global_batch),
            )
            # By weights, one epoch may hold more bad samples than another; all are made as long as the first.
            self._orders[epoch] = np.resize(order, self._length or len(order))
            while len(self._orders) > 2:
                del self._orders[next(iter(self._orders))]
        return self._orders[epoch]


class _Data(Protocol):
    """What a recorded order is checked against."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class _ReplayPlan:
    """Recorded micro-batches, one by one."""

    slots: tuple[list[list[int]], ...]
    steps_per_epoch: float

    @property
    def num_steps(self) -> int:
        return len(self.slots)

    def step(self, step: int) -> list[list[int]]:
        return self.slots[step]


def replay_plan(path: Path, data: _Data, *, world_size: int) -> Plan:
    """Read a recorded order: `{"steps": [[{"ids": [...], "index": [...]}, ...micro-batches], ...]}`.

    Raises FileError when it cannot be read, and DataError when it has another form or names other samples
    than the data has at those places.
    """
    content = read_json(path)
    steps = content.get("steps") if isinstance(content, Mapping) else None
    if not isinstance(steps, list) or not steps or not all(isinstance(one, list) and one for one in steps):
        raise _malformed(path)
    slots = [[_recorded(micro, data, path) for micro in step] for step in steps]
    for step_slots in slots:
        step_slots += [[] for _ in range(-len(step_slots) % world_size)]
    num_samples = sum(len(slot) for step_slots in slots for slot in step_slots)
    return _ReplayPlan(tuple(slots), steps_per_epoch=len(slots) * len(data) / num_samples)


def _recorded(micro: Any, data: _Data, path: Path) -> list[int]:
    """Return the indices of a recorded micro-batch after comparing its ids."""
    if not isinstance(micro, Mapping):
        raise _malformed(path)
    indices, ids = micro.get("index"), micro.get("ids")
    if not isinstance(indices, list) or not isinstance(ids, list) or len(indices) != len(ids) or not indices:
        raise _malformed(path)
    for index, name in zip(indices, ids, strict=True):
        if type(index) is not int or not 0 <= index < len(data):
            raise DataError(
                f"{path} names sample {index!r}, and the data has {len(data)}",
                remedy="Give the data of the recorded run.",
            )
        own = data[index].id
        if own != str(name):
            raise DataError(
                f"{path} has id {name!r} at sample {index}, and the data has {own!r}",
                remedy="Give the data of the recorded run, in the same order.",
            )
    return list(indices)


def _malformed(path: Path) -> DataError:
    return DataError(
        f"{path} is no recorded order",
        remedy='Its form is {"steps": [[{"ids": [...], "index": [...]}, ...], ...]}.',
    )
