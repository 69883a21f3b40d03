"""The machines that a run is planned for: devices, their memory, peak and the host's memory.

Peaks are `telemetry.PEAK_FLOPS`, by NVIDIA's data sheets; memory is what the data sheet names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava.command import nearest
from llava.errors import UsageError
from llava.train.telemetry import PEAK_FLOPS

GIB = 2**30
USABLE_SHARE = 0.94
"""Of a GPU's memory: the rest goes to fragments of torch's allocator."""
_CONTEXT_BYTES = int(1.2 * GIB)
"""What CUDA's context, cuBLAS workspaces and NCCL take before a tensor is there."""
_PROCESS_BYTES = int(0.55 * GIB)
"""What Python, torch and transformers take in a process that computes on the CPU."""
CARDS = {
    # name: (entry of PEAK_FLOPS, GiB)
    "a100-40g": ("NVIDIA A100", 40),
    "a100-80g": ("NVIDIA A100", 80),
    "a800-80g": ("NVIDIA A800", 80),
    "h100-80g": ("NVIDIA H100", 80),
    "h200-141g": ("NVIDIA H200", 141),
    "b200-180g": ("NVIDIA B200", 180),
    "a40-48g": ("NVIDIA A40", 48),
    "a6000-48g": ("NVIDIA A6000", 48),
    "l40s-48g": ("NVIDIA L40S", 48),
    "l4-24g": ("NVIDIA L4", 24),
    "a10-24g": ("NVIDIA A10", 24),
    "rtx3090-24g": ("NVIDIA GeForce RTX 3090", 24),
    "rtx4090-24g": ("NVIDIA GeForce RTX 4090", 24),
    "v100-32g": ("Tesla V100", 32),
    "t4-16g": ("Tesla T4", 16),
}
CPU = "cpu"


@dataclass(frozen=True)
class Machine:
    """Devices of one kind."""

    name: str
    num_devices: int
    memory: int
    """Bytes of one device; of the host, where the CPU computes."""
    peak_flops: float | None
    """Of one device in 16 bits, FLOP/s; None: not known, and no hours are predicted."""
    host_memory: int | None = None
    """Bytes of one host; None: not stated, and not checked."""
    update_bytes_per_s: float | None = None
    """Memory traffic of the optimizer's update; None: fast enough to be left out, as on GPUs."""
    is_cpu: bool = False
    reserved: int = _CONTEXT_BYTES
    """Bytes of one device that the run's libraries take."""

    @property
    def usable(self) -> int:
        """Bytes of one device that a run can fill."""
        return self.memory if self.is_cpu else int(self.memory * USABLE_SHARE)

    def describe(self) -> str:
        """Return it in words."""
        kind = "CPU process" if self.is_cpu else self.name
        return f"{self.num_devices} x {kind}, {self.memory / GIB:.0f} GiB each"


def find_machine(
    words: Sequence[str] | None = None,
    *,
    gpus: int | None = None,
    memory_gib: float | None = None,
    card: str | None = None,
    host_gib: float | None = None,
    peak_tflops: float | None = None,
) -> Machine:
    """Return the machine that the options describe; 8 A100s of 80 GiB when they say nothing.

    words: "a100-80g x8" or its two words. card: a name of CARDS, "cpu", or the beginning of one when
    `memory_gib` tells the rest. Raises UsageError.
    """
    name, count = _read(words) if words else (card, None)
    if words and (card or gpus):
        raise UsageError("--machine is given beside --gpu or --gpus", remedy="Use one way to say it.")
    num_devices = gpus or count or (8 if name is None else 1)
    if num_devices < 1:
        raise UsageError(f"{num_devices} devices", remedy="Give 1 or more.")
    machine = _named(name or "a100-80g", memory_gib)
    return replace(
        machine,
        num_devices=num_devices,
        memory=machine.memory if memory_gib is None else int(memory_gib * GIB),
        peak_flops=machine.peak_flops if peak_tflops is None else peak_tflops * 1e12,
        host_memory=None if host_gib is None else int(host_gib * GIB),
    )


def _read(words: Sequence[str]) -> tuple[str, int | None]:
    match = re.fullmatch(r"([\w-]+?)(?:\s*[\sx*]\s*(\d+))?", " ".join(words).strip().lower())
    if match is None:
        raise UsageError(f"--machine is {' '.join(words)!r}", remedy="Example: --machine a100-80g x8.")
    return match[1], None if match[2] is None else int(match[2])


def _named(name: str, memory_gib: float | None) -> Machine:
    name = name.lower()
    if name == CPU:
        if memory_gib is None:
            raise UsageError("a CPU's memory is not stated", remedy="Give --memory GIB.")
        return Machine(CPU, 1, 0, None, is_cpu=True, reserved=_PROCESS_BYTES)
    similar = [known for known in CARDS if known == name or known.startswith(f"{name}-")]
    if not similar:
        remedy = f"{nearest(name, CARDS)}Known: {', '.join(CARDS)}, cpu; else --memory and --peak-tflops."
        if memory_gib is None:
            raise UsageError(f"the card {name!r} is not known", remedy=remedy)
        return Machine(name, 1, 0, None)
    if len(similar) > 1 and memory_gib is None:
        raise UsageError(f"the card {name!r} is one of several", remedy=f"Give one of {', '.join(similar)}.")
    entry, gib = CARDS[similar[0]]
    label = similar[0] if memory_gib in (None, gib) else f"{name}-{memory_gib:g}g"
    return Machine(label, 1, gib * GIB, PEAK_FLOPS[entry])
