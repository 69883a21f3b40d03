"""Trained weights and optimizer state in two files that need no pickle and any number of ranks can read.

    trained.safetensors   "model/NAME" weights, "optimizer/NAME/KEY" tensors of the optimizer's state
    trained.json          the optimizer's groups by parameter name, state that is no tensor, the loss scale

Used by engines whose ranks hold everything (`single`, `ddp`). Frozen weights are not written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from llava.errors import CheckpointError, WeightsError
from llava.files import read_json, write_json
from llava.train.parallel.engine import trained_parameters

TENSORS = "trained.safetensors"
REST = "trained.json"


def save_state(folder: Path, module: nn.Module, optimizer: Optimizer, *, extra: dict[str, float]) -> None:
    """Write the two files; `extra` is returned by `load_state`."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, object]] = {}
    names = {id(parameter): name for name, parameter in trained_parameters(module)}
    for name, parameter in trained_parameters(module):
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                values.setdefault(name, {})[key] = value
    groups = [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    # Copies: safetensors refuses tensors that share memory, as the tables of 8-bit optimizers do.
    save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, folder / TENSORS)
    write_json(folder / REST, {"groups": groups, "values": values, "extra": extra})


def load_state(folder: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Read the two files into the module and the optimizer, and return `extra`.

    Raises CheckpointError when a file is missing or damaged, WeightsError when it holds other parameters.
    """
    rest = read_json(folder / REST)
    named = dict(trained_parameters(module))
    try:
        with safe_open(folder / TENSORS, framework="pt", device="cpu") as source:
            _check_names(
                folder, {k.removeprefix("model/") for k in source.keys() if k[:6] == "model/"}, named
            )
            states = {name: dict(rest["values"].get(name, {})) for name in named}
            for key in source.keys():
                kind, _, name = key.partition("/")
                if kind == "model":
                    _copy(named[name], source.get_tensor(key), key)
                else:
                    name, _, slot = name.rpartition("/")
                    states[name][slot] = source.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} cannot be read: {error}") from error
    _load_optimizer(optimizer, named, states, rest["groups"], folder=folder)
    extra: dict[str, float] = rest["extra"]
    return extra


def _check_names(folder: Path, found: set[str], wanted: dict[str, nn.Parameter]) -> None:
    missing, surplus = sorted(wanted.keys() - found), sorted(found - wanted.keys())
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds {surplus[0]}, which does not learn now"
        raise WeightsError(
            f"{folder} {what} ({len(missing)} missing, {len(surplus)} surplus parameters)",
            remedy="Resume with the stage and model it was saved with, or begin in another output folder.",
        )


def _copy(parameter: nn.Parameter, value: torch.Tensor, name: str) -> None:
    if parameter.shape != value.shape:
        raise WeightsError(f"{name} has shape {tuple(value.shape)}, the model {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(value)


def _load_optimizer(
    optimizer: Optimizer,
    named: dict[str, nn.Parameter],
    states: dict[str, dict[str, Any]],
    groups: list[dict[str, Any]],
    *,
    folder: Path,
) -> None:
    """Hand torch what its own `load_state_dict` takes: parameters by number, in the order of the groups."""
    names = {id(parameter): name for name, parameter in named.items()}
    order = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    if order != [group["params"] for group in groups]:
        raise CheckpointError(
            f"{folder} was saved with other parameter groups",
            remedy="Resume with the same learning rates per part and weight decay.",
        )
    numbers = {name: number for number, name in enumerate(name for group in order for name in group)}
    numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    for group, present in zip(numbered, optimizer.param_groups, strict=True):
        # JSON knows no tuples, and optimizers compare and unpack theirs.
        group.update({k: tuple(group[k]) for k, v in present.items() if isinstance(v, tuple) and k in group})
    state = {numbers[name]: values for name, values in states.items() if values}
    optimizer.load_state_dict({"state": state, "param_groups": numbered})
