"""Bytes of a run on each device, on each host, at a save and on disk.

    held      weights, gradients, optimizer state: what the engine shards, and how
    pass      activations and logits of the largest pass (`passes`)
    moments   pass | optimizer step | save: the peak is the largest

Each engine's rule is read off its code: DDP and one process hold everything; FSDP2 spreads all, gathers
layer by layer, and sums whole gradients when a step has several passes; ZeRO 1, 2, 3 spread optimizer state,
gradients, weights, of which "offload" moves to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llava.train.config import TrainConfig
from llava.train.parallel.deepspeed_config import read_deepspeed
from llava.train.parallel.launch import engine_name
from llava.train.planning.machines import Machine
from llava.train.planning.passes import PassBytes
from llava.train.planning.shapes import Counts
from llava.train.stages import bits_of

Sharding = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]
_QUANTISED_BYTES = {4: 0.5 + 0.127 / 8, 8: 1.0 + 4 / 4096}
"""Per weight: 4 bits and double-quantised constants (0.127 bits, Dettmers et al. 2023); 8 bits and a scale
per row."""
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.04, "muon": 4.0, "sgd": 4.0}
"""State per trained weight; Muon keeps one moment of matrices (its AdamW share is small)."""
_LIVE_PARAMETERS = 1e9
"""DeepSpeed's default of stage3_max_live_parameters."""
_BUCKET = 5e8
"""DeepSpeed's default of reduce_bucket_size."""


@dataclass(frozen=True)
class Layout:
    """Who holds what."""

    sharding: Sharding
    num_devices: int
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    bucket: float = 0.0
    """Values of a gradient bucket."""
    live: float = 0.0
    """Values of gathered weights at most, ZeRO-3."""

    @property
    def name(self) -> str:
        """The engine in words."""
        if self.sharding == "ddp" and self.num_devices == 1:
            return "one process"
        extra = " with offload" if self.offloads_optimizer or self.offloads_weights else ""
        return f"{self.sharding}{extra}"


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, and of the host beside it."""

    weights_trained: int
    weights_frozen: int
    weights_quantised: int
    gathered: int
    """Weights that a sharding engine has gathered at once."""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    """Pixels, gradient buckets, tables of the model; on a CPU weight files, which stay mapped."""
    reserved: int
    """Libraries: CUDA's context, or a CPU process before it holds a model."""
    peak: int
    """The largest of the moments."""
    peak_moment: str
    """Which one that is: "pass", "optimizer step" or "save"."""
    save_host: int
    """Of rank 0's host, at its most, while a checkpoint or the result is written."""
    host: int
    """Of each host, all its processes together: offloaded state."""


def read_layout(config: TrainConfig, num_devices: int, hidden_size: int) -> Layout:
    """Return how the recipe's engine spreads a run; raises ConfigError as the trainer would.

    A DeepSpeed file that is missing is an error, as in training.
    """
    run = config.run
    name = engine_name(run)
    if name == "ddp" or name == "fsdp":
        return Layout("fsdp" if name == "fsdp" else "ddp", num_devices)
    assert run.deepspeed is not None, "engine_name checks"
    zero = read_deepspeed(_found(run.deepspeed))["zero_optimization"]
    stages: dict[int, Sharding] = {1: "zero1", 2: "zero2", 3: "zero3"}
    bucket = zero.get("reduce_bucket_size", _BUCKET)
    return Layout(
        stages[zero["stage"]],
        num_devices,
        offloads_optimizer=_offloads(zero, "offload_optimizer"),
        offloads_weights=_offloads(zero, "offload_param"),
        bucket=float(hidden_size**2 if bucket == "auto" else bucket),
        live=float(zero.get("stage3_max_live_parameters", _LIVE_PARAMETERS)) if zero["stage"] == 3 else 0.0,
    )


def _found(path: str) -> str:
    """Return the recipes' scripts/ of this project where the working directory has none."""
    own = Path(__file__).parents[3] / path
    return str(own) if not Path(path).exists() and own.exists() else path


def _offloads(zero: dict[str, Any], key: str) -> bool:
    section = zero.get(key) or {}
    return bool(section.get("device", "none") != "none")


def trained_dtype(layout: Layout, compute: torch.dtype) -> torch.dtype:
    """Return the dtype in which the pass sees weights that learn."""
    return torch.float32 if layout.sharding == "ddp" else compute


def holds_gradients(layout: Layout, num_passes: int) -> bool:
    """Whether the largest pass is also the one in which gradients come to be: they are not there before."""
    return layout.sharding == "ddp" and num_passes == 1


def predict_memory(
    config: TrainConfig,
    machine: Machine,
    layout: Layout,
    counts: Counts,
    passed: PassBytes,
    *,
    compute: torch.dtype,
    num_passes: int,
    pixel_bytes: int,
    buffer_bytes: int,
) -> Memory:
    """Return the bytes of one device and its host.

    passed: of the largest pass. num_passes: of a device in a step. pixel_bytes: of that pass's pictures.
    buffer_bytes: of the model's buffers, and of mapped files.
    """
    kind, width = layout.sharding, compute.itemsize
    trained, state = counts.trained, _OPTIMIZER_BYTES[config.optimizer.name]
    held, held_frozen, master, moments, host = _resident(layout, counts, width=width, state=state)
    gradients = _gradient_bytes(layout, trained, num_passes)
    gathered = _gathered_bytes(layout, counts, width)
    quantised = _QUANTISED_BYTES.get(bits_of(config.stage), 0.0) * counts.quantised
    base = machine.reserved + held + master + held_frozen + quantised + buffer_bytes + moments
    in_pass = base + gathered + 2.0 * layout.bucket * width + 2 * pixel_bytes
    in_pass += passed.peak + (0.0 if passed.holds_gradients else gradients)
    update = _update_bytes(machine, layout, counts)
    saved = (4.0 + state) * trained
    in_step = base + gradients + update
    in_save = base + saved if machine.is_cpu and kind == "ddp" else 0.0
    peaks = {"pass": in_pass, "optimizer step": in_step, "save": in_save}
    moment = max(peaks, key=lambda name: peaks[name])
    activations = max(0, passed.peak - passed.logits)
    return Memory(
        weights_trained=int(held + master),
        weights_frozen=int(held_frozen),
        weights_quantised=int(quantised),
        gathered=int(gathered),
        gradients=int(gradients),
        optimizer=int(moments),
        activations=activations,
        logits=passed.logits,
        buffers=int(buffer_bytes + 2 * pixel_bytes + 2.0 * layout.bucket * width),
        reserved=machine.reserved,
        peak=int(max(peaks.values())),
        peak_moment=moment,
        save_host=int(_save_bytes(layout, trained, saved, width)),
        host=int(host),
    )


def _resident(
    layout: Layout, counts: Counts, *, width: int, state: float
) -> tuple[float, float, float, float, float]:
    """Return bytes that stay: trained weights, frozen ones, masters, moments, and what is on the host."""
    n = layout.num_devices
    kind = layout.sharding
    trained, frozen = counts.trained, counts.frozen
    is_zero = kind.startswith("zero")
    spreads_weights = kind in ("fsdp", "zero3")
    share = 1 / n if spreads_weights else 1.0
    # DeepSpeed holds weights in the compute dtype beside their float32 masters.
    master = 4.0 * trained / n if is_zero and width != 4 else 0.0
    held = (width if is_zero else 4.0) * trained * share
    held_frozen = width * frozen * share
    moments = state * trained / (n if kind != "ddp" else 1)
    host = 0.0
    if layout.offloads_optimizer:
        host += (master + moments) * n + 4.0 * trained
        master = moments = 0.0
    if layout.offloads_weights:
        host += (held + held_frozen) * n
        held = held_frozen = 0.0
    return held, held_frozen, master, moments, host


def _gradient_bytes(layout: Layout, trained: int, num_passes: int) -> float:
    if layout.offloads_optimizer and layout.sharding != "zero1":
        return 0.0
    if layout.sharding == "fsdp" and num_passes > 1:
        return 4.0 * trained  # summed whole until the last pass, in float32
    return 4.0 * trained / (layout.num_devices if layout.sharding in ("fsdp", "zero2", "zero3") else 1)


def _gathered_bytes(layout: Layout, counts: Counts, width: int) -> float:
    if layout.sharding == "zero3":
        return min(layout.live, counts.total) * width
    if layout.sharding == "fsdp" and layout.num_devices > 1:
        return (counts.outside_layers + 2.0 * counts.largest_layer) * width
    return 0.0


def _update_bytes(machine: Machine, layout: Layout, counts: Counts) -> float:
    """Return what the optimizer's step needs besides: on GPUs it makes a copy of all at once."""
    if layout.offloads_optimizer:
        return 0.0
    if machine.is_cpu:
        return 8.0 * counts.largest_trained
    return 4.0 * counts.trained / (layout.num_devices if layout.sharding != "ddp" else 1)


def _save_bytes(layout: Layout, trained: int, saved: float, width: int) -> float:
    """Return host memory while saving: a copy of the checkpoint, or the gathered float32 weights."""
    checkpoint = saved if layout.sharding == "ddp" else saved / layout.num_devices + width * trained
    return max(checkpoint, 4.0 * trained)


@dataclass(frozen=True)
class Disk:
    """Bytes in the output folder."""

    checkpoint: int
    """One of them."""
    num_checkpoints: int
    """At once, one being written among them."""
    final: int
    """The result."""

    @property
    def total(self) -> int:
        """At its most."""
        return self.checkpoint * self.num_checkpoints + self.final


def predict_disk(
    config: TrainConfig, layout: Layout, counts: Counts, *, num_steps: int, compute: torch.dtype
) -> Disk:
    """Return the bytes that a run leaves; a checkpoint holds what learns and the optimizer's state."""
    run = config.run
    state = _OPTIMIZER_BYTES[config.optimizer.name]
    each = (4.0 + state) * counts.trained
    if layout.sharding.startswith("zero") and compute != torch.float32:
        each += compute.itemsize * counts.trained
    num_saves = num_steps // run.save_steps if run.save_steps else 0
    limit = num_saves if run.save_limit is None else max(1, run.save_limit)
    kept = min(max(num_saves, 1), limit + 1)
    final = 0.0
    if run.save_final:
        is_whole = config.stage.name in ("finetune", "custom")
        final = compute.itemsize * counts.total if is_whole else 4.0 * counts.trained
        if not is_whole and run.legacy_files:
            final *= 2
    return Disk(int(each), kept, int(final))
