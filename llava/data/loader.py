"""The steps of a run as ready micro-batches of one rank, prepared ahead in worker processes.

Place in the flow: `plan` says which samples, `samples` and `collator` make them, the training loop takes
them. What a step holds is a function of the step alone, so that any number of workers gives the same, and a
run goes on at any step. The original replaced a sample that failed by a random other one (spec,
defect 19); here it is left out by policy, and counted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from llava.data.batch import Batch, Example
from llava.data.collator import collate_packed, collate_padded
from llava.data.plan import Plan
from llava.data.policy import BadSample, BadSampleLog
from llava.data.samples import SampleEncoder
from llava.data.scan import Data, bad_sample, content_of
from llava.data.workers import ordered_map
from llava.errors import DataError, LlavaError


@dataclass(frozen=True)
class Collation:
    """How samples become a micro-batch."""

    packing: bool
    pad_id: int = 0
    compat: bool = False
    """Padded as the original pads."""


@dataclass(frozen=True)
class StepBatches:
    """One rank's part of an optimizer step."""

    step: int
    """From 0."""
    batches: list[Batch]
    """As many on every rank."""
    wait_s: float
    """Seconds the caller waited for them."""
    num_skipped: int
    """Samples that could not be used."""


def batches(
    plan: Plan,
    data: Data,
    encoder: SampleEncoder,
    log: BadSampleLog,
    *,
    collation: Collation,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
    num_workers: int = 0,
) -> Generator[StepBatches]:
    """Yield the steps from `first_step` to the plan's end.

    num_workers: processes that prepare about one step ahead; 0 prepares when asked. Close the generator to
    end them early. log: hears here, in the caller's process, of every sample that cannot be used, in the
    order of use. Raises what it raises, and DataError when a worker is ended from outside.
    """
    keys = _Keys(plan, rank, world_size, first_step)
    loaded = ordered_map(
        _Maker(data, encoder, collation), keys, num_workers=num_workers, ahead=keys.slots_of_a_step
    )
    with closing(loaded):
        for step in range(first_step, plan.num_steps):
            begin = time.perf_counter()
            made = list(itertools.islice(loaded, len(plan.step(step)) // world_size))
            for micro in made:
                for sample, error in micro.bad:
                    _report(sample, error, data, log)
            yield StepBatches(
                step=step,
                batches=[_batch_of(micro.fields) for micro in made],
                wait_s=time.perf_counter() - begin,
                num_skipped=sum(len(micro.bad) for micro in made),
            )


@dataclass(frozen=True)
class _Made:
    """A micro-batch on its way from a worker, and the samples it lost."""

    fields: dict[str, Any]
    """Of a `Batch`; tensors as arrays, which travel faster."""
    bad: tuple[tuple[BadSample, LlavaError], ...]


@dataclass(frozen=True)
class _Maker:
    """Makes the micro-batch of given samples; travels to worker processes."""

    data: Data
    encoder: SampleEncoder
    collation: Collation

    def __call__(self, indices: list[int]) -> _Made:
        examples: list[Example] = []
        bad: list[tuple[BadSample, LlavaError]] = []
        for index in indices:
            record = None
            try:
                record = self.data[index]
                examples.append(self.encoder.example(index, record))
            except LlavaError as error:
                bad.append((bad_sample(self.data, index, error, record), error))
        return _Made(_fields_of(self._collated(examples)), tuple(bad))

    def _collated(self, examples: list[Example]) -> Batch:
        num_image_tokens = self.encoder.num_image_tokens
        if self.collation.packing:
            return collate_packed(examples, num_image_tokens=num_image_tokens)
        return collate_padded(
            examples,
            num_image_tokens=num_image_tokens,
            pad_id=self.collation.pad_id,
            compat=self.collation.compat,
        )


@dataclass(frozen=True)
class _Keys:
    """The sample indices of one rank's micro-batches, step by step."""

    plan: Plan
    rank: int
    world_size: int
    first_step: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.plan.num_steps):
            yield from self.plan.step(step)[self.rank :: self.world_size]

    @property
    def slots_of_a_step(self) -> int:
        """Micro-batches of this rank in the first step, as far ahead as it pays to load."""
        if self.first_step >= self.plan.num_steps:
            return 0
        return len(self.plan.step(self.first_step)) // self.world_size


def _fields_of(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {
        name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()
    }


def _batch_of(values: dict[str, Any]) -> Batch:
    tensors: dict[str, Any] = {
        name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)
    }
    return Batch(**{**values, **tensors})


def _report(sample: BadSample, error: LlavaError, data: Data, log: BadSampleLog) -> None:
    try:
        log.add(sample, content=content_of(data, sample.index))
    except DataError as failure:
        raise failure from error
