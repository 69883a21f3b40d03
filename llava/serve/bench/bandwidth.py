"""How fast this machine reads memory: the limit of decoding, which reads all weights for every token."""

from __future__ import annotations

from time import perf_counter

import torch

_CPU_BYTES = 512 << 20
"""Far beyond any cache."""
_GPU_BYTES = 1 << 30
_NUM_ROUNDS = 5


def read_bandwidth(device: torch.device) -> float:
    """Return bytes per second, the best of a few short rounds.

    CPU: a sum over half a GiB with torch's threads. GPU: a copy of one GiB; reads and writes both count.
    """
    if device.type == "cpu":
        values = torch.ones(_CPU_BYTES // 4, dtype=torch.float32)
        return _CPU_BYTES / min(_seconds_of_sum(values) for _ in range(_NUM_ROUNDS))
    source = torch.ones(_GPU_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * _GPU_BYTES / min(_seconds_of_copy(source, target) for _ in range(_NUM_ROUNDS))


def _seconds_of_sum(values: torch.Tensor) -> float:
    begin = perf_counter()
    values.sum()
    return perf_counter() - begin


def _seconds_of_copy(source: torch.Tensor, target: torch.Tensor) -> float:
    _wait_for(source.device)
    begin = perf_counter()
    target.copy_(source)
    _wait_for(source.device)
    return perf_counter() - begin


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
