"""Spread a model over several devices so that no decoder or tower block is cut in two.

Place in the flow: `builder` asks `resolve` for a device map on the empty model, `device_of` for each tensor
while filling, and `dispatch` to connect the parts. accelerate chooses the devices (in the model's order:
tower, projector, embedding, decoder, head; what the GPUs cannot hold goes to main memory, then to disk) and
moves activations and offloaded weights. Ours are what counts as one part and the check of a given map.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import CustomDtype, get_balanced_memory, get_max_memory
from torch import nn

from llava.errors import ConfigError, UsageError
from llava.model.quantize import quantised_names

Device = int | str
AUTOMATIC = ("auto", "balanced")
_GPU_SHARE = 0.9
"""Part of a GPU's free memory for weights; the rest is for activations and the cache."""
_QUANTISED = {4: CustomDtype.INT4, 8: torch.int8}


def resolve(
    model: nn.Module,
    device_map: str | Mapping[str, Device],
    dtype: torch.dtype,
    bits: Literal[4, 8] | None = None,
    *,
    budgets: Mapping[Device, int] | None = None,
) -> dict[str, Device]:
    """Return a device for every part of `model`, which may be on the meta device.

    device_map: "auto" or "balanced" (the same: GPUs share evenly), one device for all ("cuda:1"), or a map
    from module names to devices, "" for the rest. budgets: bytes per device in order of preference; None asks
    the machine. Raises ConfigError for a map that leaves a part out or cuts a block, UsageError when a
    quantised model does not fit the GPUs.
    """
    if isinstance(device_map, Mapping):
        return _checked(model, device_map)
    if device_map not in AUTOMATIC:
        return _checked(model, {"": device_map})
    free = dict(budgets) if budgets is not None else _free_memory()
    placed = _allocated(model, free, _stored_dtypes(model, dtype, bits))
    has_gpu = any(isinstance(device, int) for device in free)
    if bits is not None and has_gpu and any(isinstance(device, str) for device in placed.values()):
        raise UsageError(
            f"The model in {bits} bits does not fit the GPUs, and quantised layers cannot be offloaded",
            remedy="Free GPU memory, use more GPUs, or use --device cpu.",
        )
    return placed


def device_of(device_map: Mapping[str, Device], name: str) -> torch.device:
    """Return where a parameter is stored while the model is filled; what goes to disk waits on the CPU."""
    units = [unit for unit in device_map if _is_in(name, unit)]
    assert units, f"{name} is in no part of the device map"
    device = device_map[max(units, key=len)]
    if device == "disk":
        return torch.device("cpu")
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def dispatch(model: nn.Module, device_map: Mapping[str, Device]) -> None:
    """Connect a filled model's parts, and move to disk what belongs there (in a temporary folder)."""
    devices = set(device_map.values())
    if len(devices) == 1 and "disk" not in devices:
        model.to(device_of(device_map, next(iter(device_map))))
        return
    folder: str | None = None
    if "disk" in devices:
        folder = tempfile.mkdtemp(prefix="llava-offload-")
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    # accelerate finds no device to compute on by itself when all is on disk.
    computing: dict[str, Any] = {"main_device": "cpu", "force_hooks": True} if devices == {"disk"} else {}
    dispatch_model(
        model, dict(device_map), offload_dir=folder, skip_keys=["cache", "past_key_values"], **computing
    )


def _allocated(model: nn.Module, free: dict[Device, int], dtypes: dict[str, Any]) -> dict[str, Device]:
    """Return accelerate's device map; GPUs get even shares, so that the last one is not left empty."""
    modules = dict(model.named_modules())
    whole = sorted({type(modules[unit]).__name__ for unit in _units(model) if unit in modules})
    shares = get_balanced_memory(model, free, no_split_module_classes=whole, special_dtypes=dtypes)
    return dict(
        infer_auto_device_map(
            model, shares, no_split_module_classes=whole, special_dtypes=dtypes, offload_buffers=True
        )
    )


def _stored_dtypes(model: nn.Module, dtype: torch.dtype, bits: Literal[4, 8] | None) -> dict[str, Any]:
    dtypes: dict[str, Any] = {name: dtype for name, _ in model.named_parameters()}
    if bits is not None:
        dtypes |= {f"{name}.weight": _QUANTISED[bits] for name in quantised_names(model)}
    return dtypes


def _units(module: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of the parts that stay whole: blocks of a list, and modules without such a list."""
    if isinstance(module, nn.ModuleList):
        return [f"{prefix}{index}" for index in range(len(module))]
    if not any(isinstance(inner, nn.ModuleList) for inner in module.modules()):
        return [prefix.removesuffix(".")]
    units = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
    units += [f"{prefix}{name}" for name, _ in module.named_buffers(recurse=False)]
    for name, child in module.named_children():
        units += _units(child, f"{prefix}{name}.")
    return units


def _is_in(name: str, unit: str) -> bool:
    return not unit or name == unit or name.startswith(f"{unit}.")


def _checked(model: nn.Module, device_map: Mapping[str, Device]) -> dict[str, Device]:
    """Return a given map spelled out part by part: accelerate knows "" alone only."""
    units = _units(model)
    for key, device in device_map.items():
        if any(key != unit and _is_in(key, unit) for unit in units):
            unit = next(unit for unit in units if _is_in(key, unit))
            raise ConfigError(
                f"device_map cuts {unit} in two at {key}", remedy=f"Give {unit} one device as a whole."
            )
        if not any(_is_in(unit, key) for unit in units):
            raise ConfigError.of_field("device_map key", key, units)
        _check_device(device)
    for unit in units:
        if not any(_is_in(unit, key) for key in device_map):
            raise ConfigError(f"device_map says nothing about {unit}", remedy='Add it, or "" for the rest.')
    return {
        unit: device_map[max((key for key in device_map if _is_in(unit, key)), key=len)] for unit in units
    }


def _check_device(device: object) -> None:
    if device == "disk" or (type(device) is int and device >= 0):
        return
    try:
        torch.device(str(device) if isinstance(device, (str, torch.device)) else "?")
    except RuntimeError:
        allowed = ("0", "cuda:0", "cpu", "disk")
        raise ConfigError.of_field("device in device_map", device, allowed) from None


def _free_memory() -> dict[Device, int]:
    free = get_max_memory()
    return {
        device: int(num_bytes * (_GPU_SHARE if isinstance(device, int) else 1))
        for device, num_bytes in free.items()
    }
