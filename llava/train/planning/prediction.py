"""A recipe on a machine: everything that is predicted of it, together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from llava.model.device import DTYPES
from llava.train.batch_sizes import Batches, derive_batches
from llava.train.config import TrainConfig
from llava.train.flops import StepFlops, step_flops
from llava.train.parallel.launch import engine_name
from llava.train.planning.lengths import Lengths
from llava.train.planning.machines import GIB, Machine
from llava.train.planning.memory import (
    Disk,
    Layout,
    Memory,
    holds_gradients,
    predict_disk,
    predict_memory,
    read_layout,
    trained_dtype,
)
from llava.train.planning.passes import MicroBatch, measure_pass
from llava.train.planning.shapes import Counts, Shapes, count_parameters, mapped_bytes, meta_model
from llava.train.planning.timing import Hours, predict_hours

_DEVIATIONS = 2.0
"""The largest pass of a run is taken to be this many standard deviations over the mean one."""


@dataclass(frozen=True)
class Prediction:
    """What a run will need."""

    config: TrainConfig
    machine: Machine
    layout: Layout
    shapes: Shapes
    counts: Counts
    lengths: Lengths
    batches: Batches
    batch: MicroBatch
    """The largest pass."""
    num_passes: int
    """Of a device in a step."""
    memory: Memory
    hours: Hours
    disk: Disk

    @property
    def host_bytes(self) -> int:
        """Of one host, beside the devices' own memory."""
        return max(self.memory.host, 0) + (0 if self.machine.is_cpu else self.memory.save_host)

    @property
    def shortage(self) -> str:
        """One clause that says what is needed and what there is; empty when all fits."""
        if self.memory.peak > self.machine.usable:
            return (
                f"{self.memory.peak / GIB:.1f} GiB are needed on each device ({self.memory.peak_moment}), "
                f"and {self.machine.usable / GIB:.1f} GiB of {self.machine.memory / GIB:.0f} are usable"
            )
        host = self.machine.host_memory
        if host is not None and self.host_bytes > host:
            return f"{self.host_bytes / GIB:.1f} GiB are needed on the host, and it has {host / GIB:.0f} GiB"
        return ""


def predict(
    config: TrainConfig,
    machine: Machine,
    shapes: Shapes,
    lengths: Lengths,
    *,
    peak_share: float | None = None,
) -> Prediction:
    """Return what a run of `config` needs on `machine`; raises ConfigError as the trainer would."""
    model = meta_model(shapes, config.stage)
    counts = count_parameters(model, config.stage)
    compute = compute_dtype(config, machine)
    hidden_size = int(model.config.get_text_config().hidden_size)
    layout = read_layout(config, machine.num_devices, hidden_size)
    batches = derive_batches(config, machine.num_devices)
    batch, num_passes, padding = largest_pass(config, shapes, lengths, batches, machine.num_devices)
    passed = measure_pass(
        model,
        batch,
        image_size=shapes.image_size,
        compute_dtype=compute,
        trained_dtype=trained_dtype(layout, compute),
        gradient_checkpointing=config.run.gradient_checkpointing,
        holds_gradients=holds_gradients(layout, num_passes),
    )
    memory = predict_memory(
        config,
        machine,
        layout,
        counts,
        passed,
        compute=compute,
        num_passes=num_passes,
        pixel_bytes=batch.pictures * 3 * shapes.image_size**2 * 4,
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers())
        + (mapped_bytes(shapes) if machine.is_cpu else 0),
    )
    hours = predict_hours(
        config,
        machine,
        step_flops(model),
        _forward_flops(model),
        lengths,
        shapes,
        counts,
        global_batch=batches.global_batch,
        peak_share=peak_share,
        padding=padding,
    )
    disk = predict_disk(config, layout, counts, num_steps=hours.num_steps, compute=compute)
    return Prediction(
        config, machine, layout, shapes, counts, lengths, batches, batch, num_passes, memory, hours, disk
    )


def compute_dtype(config: TrainConfig, machine: Machine) -> torch.dtype:
    """Return the dtype of matrix products: the recipe's, else float32 as the trainer has it."""
    del machine
    return DTYPES[config.run.precision or "float32"]


def largest_pass(
    config: TrainConfig, shapes: Shapes, lengths: Lengths, batches: Batches, num_devices: int
) -> tuple[MicroBatch, int, float]:
    """Return (the largest pass of a device, passes of a device in a step, share of padding).

    Packed passes are filled evenly and hold at most `micro_tokens` positions; a step has `global_batch`
    samples. Padded ones are as long as their longest sample.
    """
    data = config.data
    mean = lengths.total(shapes.num_image_tokens, data.max_length)
    deviation = mean * lengths.spread
    if data.packing:
        limit = config.run.micro_tokens or batches.micro_batch * data.max_length
        in_step = batches.global_batch * mean
        in_step += _DEVIATIONS * deviation * math.sqrt(batches.global_batch)
        num_passes = max(1, math.ceil(in_step / (num_devices * limit)))
        samples = batches.global_batch / (num_devices * num_passes)
        # The longest first: no pass is shorter than the longest sample of its step.
        longest = min(float(lengths.longest or mean + _DEVIATIONS * deviation), float(data.max_length))
        positions = math.ceil(max(min(in_step / (num_devices * num_passes), limit), longest))
        return _sized(1, positions, samples, lengths, is_packed=True), num_passes, 0.0
    longest = min(float(lengths.longest or mean + _DEVIATIONS * deviation), float(data.max_length))
    num_passes = batches.accumulation
    rows = max(1, min(batches.micro_batch, batches.global_batch // (num_devices * num_passes)))
    grows = 1.0 if data.order in ("random", "sequential") else 0.3
    padding = grows * lengths.spread / (1 + lengths.spread)
    return _sized(rows, math.ceil(longest), float(rows), lengths, is_packed=False), num_passes, padding


def _sized(rows: int, length: int, samples: float, lengths: Lengths, *, is_packed: bool) -> MicroBatch:
    wide = 1 + _DEVIATIONS * lengths.spread / math.sqrt(max(samples, 1.0))
    return MicroBatch(
        rows=rows,
        length=max(length, 2),
        pictures=math.ceil(samples * lengths.pictures),
        targets=max(1, min(rows * length, math.ceil(samples * lengths.targets * wide))),
        is_packed=is_packed,
    )


def _forward_flops(model: Any) -> StepFlops:
    """Return the FLOPs of the forward pass: those of a model in which nothing learns."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    found = step_flops(model)
    for parameter in learning:
        parameter.requires_grad_(True)
    return found


def changed(config: TrainConfig, **sections: dict[str, Any]) -> TrainConfig:
    """Return a run with other fields: changed(config, run={"micro_batch": 4})."""
    parts = {name: replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return replace(config, **parts)


def is_deepspeed(config: TrainConfig) -> bool:
    """Whether the recipe trains with DeepSpeed."""
    return engine_name(config.run) == "deepspeed"
