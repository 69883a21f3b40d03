"""A prediction as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from llava.train.planning.machines import GIB
from llava.train.planning.prediction import Prediction
from llava.train.planning.proposals import Proposal


def describe(prediction: Prediction, proposals: Sequence[Proposal] = ()) -> str:
    """Return the whole prediction, line by line; proposals where it does not fit."""
    blocks = [_run_lines(prediction), _memory_lines(prediction), _rest_lines(prediction)]
    if prediction.shortage:
        blocks.append(_proposal_lines(proposals))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _run_lines(prediction: Prediction) -> list[str]:
    counts, batch, shapes = prediction.counts, prediction.batch, prediction.shapes
    lengths = prediction.lengths
    shape = (
        f"{batch.length:,} packed positions"
        if batch.is_packed
        else f"{batch.rows} x {batch.length:,} positions"
    )
    return [
        f"model     {counts.total / 1e6:,.1f} million parameters, {counts.trained / 1e6:,.1f} learn "
        f"({shapes.source})",
        f"data      {lengths.num_samples:,} samples, {lengths.text:.0f} text tokens and "
        f"{lengths.pictures:.2f} pictures x {shapes.num_image_tokens} each ({lengths.source})",
        f"machine   {prediction.machine.describe()}, {prediction.layout.name}",
        f"passes    {prediction.num_passes} a step and device; the largest: {shape}, "
        f"{batch.pictures} pictures, {batch.targets:,} supervised",
    ]


def _memory_lines(prediction: Prediction) -> list[str]:
    memory = prediction.memory
    rows = [
        ("weights that learn", memory.weights_trained),
        ("weights, frozen", memory.weights_frozen),
        ("weights, quantised", memory.weights_quantised),
        ("weights, gathered", memory.gathered),
        ("gradients", memory.gradients),
        ("optimizer state", memory.optimizer),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("buffers", memory.buffers),
        ("libraries", memory.reserved),
    ]
    lines = [f"{'memory of a device':<24}{'GiB':>8}"]
    lines += [f"  {name:<22}{value / GIB:>8.2f}" for name, value in rows if value >= GIB / 200]
    usable = prediction.machine.usable / GIB
    mark = "does not fit" if memory.peak > prediction.machine.usable else "fits"
    lines.append(
        f"  {'peak':<22}{memory.peak / GIB:>8.2f}  in the {memory.peak_moment}; {usable:.1f} usable: {mark}"
    )
    lines.append(f"{'host, at a save':<24}{memory.save_host / GIB:>8.2f}")
    if memory.host:
        lines.append(f"{'host, offloaded':<24}{memory.host / GIB:>8.2f}")
    return lines


def _rest_lines(prediction: Prediction) -> list[str]:
    hours, disk = prediction.hours, prediction.disk
    if hours.hours is None:
        time = "not predicted: the machine's peak is not known (--peak-tflops)"
    else:
        time = (
            f"{hours.hours:.1f} h: {hours.num_steps:,} steps of {hours.step_s:.2f} s, "
            f"{hours.computed_flops:.2e} FLOPs at an assumed {hours.peak_share:.0%} of the peak "
            f"(MFU {hours.mfu:.0%})"
        )
    return [
        f"time      {time}",
        f"disk      {_size(disk.total)}: at most {disk.num_checkpoints} checkpoint(s) of "
        f"{_size(disk.checkpoint)} at once, result {_size(disk.final)}",
    ]


def _size(value: int) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB else f"{value / 2**20:.1f} MiB"


def _proposal_lines(proposals: Sequence[Proposal]) -> list[str]:
    if not proposals:
        return ["nothing that was tried fits: more devices, or larger ones, are needed"]
    lines = ["what fits:"]
    for proposal in proposals:
        hours = proposal.prediction.hours.hours
        time = "" if hours is None else f", {hours:.1f} h"
        peak = proposal.prediction.memory.peak / GIB
        lines.append(f"  {proposal.flags}")
        host = proposal.prediction.memory.host / GIB
        beside = f" and {host:.0f} GiB of the host" if host else ""
        lines.append(f"      {peak:.1f} GiB{beside}{time}: {proposal.reason}")
    return lines
