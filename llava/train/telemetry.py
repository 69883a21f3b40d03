"""How well the machine is used: rates and shares of a step, and one hint when one is bad.

    tokens per second, padding, MFU         what the step did, against what the device could
    data wait, communication, compute       where its time went

MFU is the model's useful FLOPs (see `flops`; no padding, nothing recomputed) over the device's dense peak, by
its data sheet. A device without a known peak, as every CPU, has no MFU: none is invented.
"""

from __future__ import annotations

import resource
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava.train.flops import StepFlops
from llava.train.metrics import StepRecord

PEAK_FLOPS = {
    # Dense tensor-core peak in bfloat16 (V100, T4: float16, they have no bfloat16), FLOP/s, from NVIDIA's
    # data sheets. Longer names first: "H100 PCIe" is a slower card than "H100".
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H20": 148e12,
    "NVIDIA H800": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A800": 312e12,
    "NVIDIA A40": 150e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A6000": 155e12,
    "NVIDIA RTX A6000": 155e12,
    "NVIDIA RTX 6000 Ada": 364e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
}
WINDOW = 50
"""Steps that a share is averaged over before it is judged."""
MAX_DATA_WAIT = 0.05
MAX_COMMUNICATION = 0.25
MAX_PADDING = 0.15
HINT_INTERVAL = 500
"""Steps between the first hint and the second; each further pause is twice as long."""


@dataclass(frozen=True)
class Hardware:
    """What a run trains on."""

    device: str
    """As the vendor names it, else the processor's architecture."""
    num_devices: int
    peak_flops: float | None
    """Of one device, FLOP/s; None where it is not known."""

    @property
    def is_gpu(self) -> bool:
        """Whether hours on it are GPU hours."""
        return not self.device.startswith("CPU")


def find_hardware(device: torch.device, num_devices: int, dtype: torch.dtype = torch.bfloat16) -> Hardware:
    """Describe the device type of this rank; dtype: of matrix products (float32 has no peak in the table)."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return Hardware(name, num_devices, peak_flops(name) if dtype != torch.float32 else None)
    if device.type == "mps":
        return Hardware("Apple GPU", num_devices, None)
    return Hardware(f"CPU, threads per process: {torch.get_num_threads()}", num_devices, None)


def peak_flops(name: str) -> float | None:
    """Return a device's dense 16-bit peak in FLOP/s by the name its driver gives, or None."""
    if "Laptop" in name or "MIG" in name.split():
        return None  # slower than the card of that name, or a part of it
    for known in sorted(PEAK_FLOPS, key=len, reverse=True):
        if name == known or name.startswith((f"{known} ", f"{known}-")):
            return PEAK_FLOPS[known]
    return None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: of the device where it counts it, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


class Telemetry:
    """Turns step records into rates; holds the last WINDOW of them for the hint."""

    def __init__(
        self,
        *,
        hardware: Hardware | None = None,
        flops: StepFlops | None = None,
        window: int = WINDOW,
        num_workers: int | None = None,
        is_packed: bool = True,
    ) -> None:
        """hardware and flops give MFU when both are there; num_workers and is_packed word the hints."""
        self.hardware = hardware
        self.flops = flops
        self._window: deque[StepRecord] = deque(maxlen=window)
        self._num_workers = num_workers
        self._is_packed = is_packed
        self._next_hint_step = 0
        self._hint_pause = HINT_INTERVAL

    def rates(self, record: StepRecord) -> dict[str, float]:
        """Add a step; returns what metrics.jsonl says of it besides. Shares are between 0 and 1."""
        self._window.append(record)
        return self._rates([record])

    def averages(self) -> dict[str, float]:
        """Return the same figures over the window."""
        return self._rates(list(self._window))

    def _rates(self, records: Sequence[StepRecord]) -> dict[str, float]:
        seconds = sum(record.seconds for record in records)
        tokens = sum(record.num_tokens for record in records)
        computed = tokens + sum(record.num_padded for record in records)
        rates: dict[str, float] = {}
        if computed:
            rates["padding_share"] = 1 - tokens / computed
        if seconds <= 0:
            return rates
        rates["tokens_per_second"] = tokens / seconds
        rates["samples_per_second"] = sum(record.num_samples for record in records) / seconds
        rates["data_wait_share"] = sum(record.data_wait_s for record in records) / seconds
        rates["communication_share"] = sum(record.communication_s for record in records) / seconds
        rates["compute_share"] = sum(record.compute_s for record in records) / seconds
        if self.flops is not None:
            achieved = sum(self.flops.of_step(record) for record in records) / seconds
            rates["flops_per_second"] = achieved
            if self.hardware is not None and self.hardware.peak_flops is not None:
                rates["mfu"] = achieved / (self.hardware.peak_flops * self.hardware.num_devices)
        return rates

    def hint(self) -> str | None:
        """Return one sentence on the worst share of a full window, or None: each pause is twice the last."""
        if len(self._window) < (self._window.maxlen or 0):
            return None
        step = self._window[-1].step
        if step < self._next_hint_step:
            return None
        rates = self.averages()
        excesses = {
            self._data_hint(rates): rates.get("data_wait_share", 0.0) / MAX_DATA_WAIT,
            _communication_hint(rates): rates.get("communication_share", 0.0) / MAX_COMMUNICATION,
            self._padding_hint(rates): rates.get("padding_share", 0.0) / MAX_PADDING,
        }
        text, excess = max(excesses.items(), key=lambda item: item[1])
        if excess <= 1:
            return None
        self._next_hint_step = step + self._hint_pause
        self._hint_pause *= 2
        return text

    def _data_hint(self, rates: dict[str, float]) -> str:
        now = "" if self._num_workers is None else f" (now {self._num_workers})"
        return f"data wait {rates.get('data_wait_share', 0.0):.0%}: raise data.num_workers{now}"

    def _padding_hint(self, rates: dict[str, float]) -> str:
        share = f"padding {rates.get('padding_share', 0.0):.0%}"
        return (
            f"{share}: samples differ much in length, raise run.micro_tokens"
            if self._is_packed
            else f"{share}: set data.packing true, or data.order length"
        )


def _communication_hint(rates: dict[str, float]) -> str:
    return (
        f"communication {rates.get('communication_share', 0.0):.0%}: raise run.micro_tokens or "
        "run.micro_batch, so that gradients are exchanged less often"
    )
