"""Which device computes, and in which dtype: the only place that decides.

Everything else takes the two as arguments.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import torch

from llava.errors import ConfigError, UsageError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
SMALL_MODEL = 200_000_000
"""Parameters up to which a CPU has nothing to gain from bfloat16, and answers the same on every machine."""
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


def resolve_device(device: str | None = None) -> torch.device:
    """Return the device of a name; None and "auto" take CUDA, then Apple's GPU, then the CPU.

    Raises UsageError for a device that this machine has not, ConfigError for an unknown name.
    """
    if device is None or device == "auto":
        return torch.device(_best_device())
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ConfigError.of_field("device", device, DEVICES) from None
    if resolved.type not in ("cpu", "cuda", "mps", "meta"):
        raise ConfigError.of_field("device", device, DEVICES)
    if resolved.type == "cuda":
        _check_cuda(device, resolved.index)
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "device is 'mps', and there is no Apple GPU that torch can use", remedy="Use --device cpu."
        )
    return resolved


def resolve_dtype(
    dtype: str | torch.dtype | None, device: torch.device, *, num_parameters: int
) -> torch.dtype:
    """Return the dtype of a name; None takes the device's own.

    CUDA: bfloat16 where the GPU computes in it, else float16. Apple's GPU: float16. CPU: bfloat16 for a model
    of more than SMALL_MODEL parameters where the CPU has units for it, else float32.
    Raises ConfigError for an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    name = dtype_name(dtype)
    return _default_dtype(device.type, num_parameters) if name is None else DTYPES[name]


def dtype_name(dtype: str | None) -> str | None:
    """Return the full name of a dtype, None for the device's own; raises ConfigError for an unknown one."""
    if dtype is None or dtype == "auto":
        return None
    name = _ALIASES.get(dtype, dtype)
    if name not in DTYPES:
        raise ConfigError.of_field("dtype", dtype, DTYPES)
    return name


def _best_device() -> Literal["cuda", "mps", "cpu"]:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_cuda(device: str, index: int | None) -> None:
    if not torch.cuda.is_available():
        raise UsageError(
            f"device is {device!r}, and torch finds no NVIDIA GPU here",
            remedy="Use --device cpu, or install the CUDA build of torch.",
        )
    if index is not None and index >= torch.cuda.device_count():
        raise UsageError(
            f"device is {device!r}, and there are {torch.cuda.device_count()} GPU(s)",
            remedy=f"Use cuda:0 to cuda:{torch.cuda.device_count() - 1}.",
        )


def _default_dtype(device_type: str, num_parameters: int) -> torch.dtype:
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device_type == "mps":
        return torch.float16
    is_small = num_parameters <= SMALL_MODEL
    return torch.float32 if is_small or not cpu_computes_bfloat16() else torch.bfloat16


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware: AVX512-BF16 or AMX on x86, BF16 on Arm (Linux)."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def cpu_has_tiles() -> bool:
    """Whether the CPU multiplies bfloat16 in tiles (Intel's AMX), several times as fast as float32."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch.cpu._is_amx_tile_supported())
