"""Spread a model over several devices so that no decoder or tower block is cut in two.

Place in the flow: `builder` asks `resolve` for a device map on the empty model, `device_of` for each tensor
while filling, and `dispatch` to connect the parts. Order of placement: token embedding, vision tower,
projector, decoder blocks, final norm, head; what the GPUs cannot hold goes to main memory, then to disk.
accelerate moves the activations (and offloaded weights) between devices.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Literal

import torch
from accelerate import dispatch_model
from accelerate.utils import get_max_memory
from torch import nn

from llava.errors import ConfigError, UsageError
from llava.model.mapping import LANGUAGE, PROJECTOR, TOWER
from llava.model.quantize import quantised_names

Device = int | str
AUTOMATIC = ("auto", "balanced")
_GPU_SHARE = 0.9
"""Part of a GPU's free memory for weights; the rest is for activations and the cache."""
_QUANTISED_BYTES = {4: 0.55, 8: 1.01}
"""Bytes per weight, with the scales."""


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
    sizes = unit_sizes(model, dtype, bits)
    placed = place(sizes, dict(budgets) if budgets is not None else _free_memory())
    has_gpu = any(isinstance(device, int) for device in placed.values())
    if bits is not None and has_gpu and any(isinstance(device, str) for device in placed.values()):
        raise UsageError(
            f"The model in {bits} bits does not fit the GPUs, and quantised layers cannot be offloaded",
            remedy="Free GPU memory, use more GPUs, or use --device cpu.",
        )
    return placed


def unit_sizes(model: nn.Module, dtype: torch.dtype, bits: Literal[4, 8] | None = None) -> dict[str, int]:
    """Return the bytes of every part that stays whole, by name, in the order of placement."""
    quantised = {f"{name}.weight" for name in quantised_names(model)} if bits is not None else set()
    sizes = dict.fromkeys(sorted(_units(model), key=_order), 0)
    for name, parameter in model.named_parameters():
        unit = next(unit for unit in sizes if _is_in(name, unit))
        width = _QUANTISED_BYTES[bits] if bits is not None and name in quantised else dtype.itemsize
        sizes[unit] += int(parameter.numel() * width)
    return sizes


def place(sizes: Mapping[str, int], budgets: Mapping[Device, int]) -> dict[str, Device]:
    """Give every unit, in order, the first device with room; never go back to an earlier device.

    GPUs (int devices) get even shares of what they can hold together, so that the last one is not left empty;
    "disk" takes the rest.
    """
    gpus = [device for device in budgets if isinstance(device, int)]
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    fits_gpus = total <= sum(budgets[gpu] for gpu in gpus)
    share = total // len(gpus) + largest if gpus and fits_gpus else total
    room = {device: min(budgets[device], share) if device in gpus else budgets[device] for device in budgets}
    # The last GPU is not held to its share: it takes what rounding left over.
    if gpus:
        room[gpus[-1]] = budgets[gpus[-1]]
    order: list[Device] = [*room, "disk"]
    placed: dict[str, Device] = {}
    current = 0
    for unit, size in sizes.items():
        while order[current] != "disk" and room[order[current]] < size:
            current += 1
        placed[unit] = order[current]
        if order[current] != "disk":
            room[order[current]] -= size
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
    dispatch_model(model, dict(device_map), offload_dir=folder, skip_keys="past_key_values")


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


def _order(unit: str) -> int:
    is_embedding = unit.startswith(LANGUAGE) and unit.endswith(("embed_tokens", "wte"))
    ranks = (
        is_embedding,
        unit.startswith(TOWER),
        f"{unit}.".startswith(PROJECTOR),
        unit.startswith(LANGUAGE),
    )
    return ranks.index(True) if True in ranks else len(ranks)


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
        unit: device_map[max((key for key in device_map if _is_in(unit, key)), key=len)]
        for unit in sorted(units, key=_order)
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
