"""Fill an empty model from a source of tensors: strictly, one tensor at a time.

Place in the flow: `builder` makes a model without weights and a source with the original's names; here every
tensor is matched with its parameters from the shapes alone, so that a wrong checkpoint is refused before
gigabytes are read, and then read in file order. Peak memory is the model and what the source holds (a shard).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from llava.errors import WeightsError
from llava.model.mapping import PROJECTOR, TOWER, Target, targets, unused_reason
from llava.model.sources import TensorSource
from llava.model.towers import Family, resize_positions

POSITION_TABLES = (f"{TOWER}embeddings.position_embeddings", f"{TOWER}embeddings.position_embedding.weight")
"""The tower's position table, of either family."""
_VOCABULARY = ("embed_tokens.weight", "wte.weight", "lm_head.weight")
_MAX_LISTED = 8

Store = Callable[[str, torch.Tensor], None]
"""Puts a tensor (on the CPU, final dtype) where the model keeps the parameter of that name."""


@dataclass
class Plan:
    """Which tensor fills which parameters, and what is rightly left out."""

    steps: list[tuple[str, list[Target]]] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    """Name of a tensor that is left out -> the reason."""
    filled: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of a parameter -> its shape."""


def make_plan(model: nn.Module, source: TensorSource, *, family: Family, num_tower_layers: int) -> Plan:
    """Match every tensor of `source` with parameters of `model` by name and shape.

    Raises WeightsError that lists what is missing, unexpected or misshapen.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    plan = Plan(shapes=shapes)
    for key in source.keys():
        reason = unused_reason(key, num_tower_layers=num_tower_layers)
        found = None if reason else targets(key, family)
        if reason is None and key == "lm_head.weight" and key not in shapes:
            reason = "the head is the token embedding (tie_word_embeddings)"
        if reason is not None:
            plan.unused[key] = reason
        elif found is None or any(target.name not in shapes for target in found):
            plan.problems.append(f"unexpected {key}")
        else:
            _match(plan, key, found, source.shape(key), shapes)
    missing = [name for name in shapes if name not in plan.filled and name not in _may_be_missing(model)]
    plan.problems += [f"missing {name}" for name in missing]
    if plan.problems:
        raise WeightsError(_summary(plan.problems), remedy=_remedy(plan.problems))
    return plan


def fill(
    plan: Plan, source: TensorSource, *, dtype: torch.dtype | Callable[[str], torch.dtype], store: Store
) -> None:
    """Read every tensor of the plan, cast it, cut or resample it, and store it.

    dtype: of all parameters, or of the parameter of a name (what is trained is kept in float32).
    """
    for name, tensor in read_parameters(plan, source, dtype=dtype):
        store(name, tensor)


def read_parameters(
    plan: Plan, source: TensorSource, *, dtype: torch.dtype | Callable[[str], torch.dtype]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (parameter, its value on the CPU) tensor by tensor, in the order of `parameter_names`."""
    dtype_of = dtype if callable(dtype) else lambda _: dtype
    for key, found in plan.steps:
        tensor = source.read(key)
        for target in found:
            shape = plan.shapes[target.name]
            part = tensor if target.num_parts == 1 else tensor.chunk(target.num_parts)[target.part]
            if target.name in POSITION_TABLES:
                part = resize_positions(part, shape[-2])
            elif target.name.endswith(_VOCABULARY):
                part = add_rows(part, shape[0])
            yield target.name, part.to(dtype_of(target.name), copy=True).reshape(shape)
        del tensor
    for name, shape in plan.shapes.items():
        if name not in plan.filled:
            # Allowed to be missing: the LayerNorm over CLIP's pooled output, as it is before training.
            yield name, torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=dtype_of(name))


def parameter_names(plan: Plan) -> list[str]:
    """Return the parameters in the order in which `read_parameters` yields them."""
    filled = [target.name for _, targets in plan.steps for target in targets]
    return [*filled, *(name for name in plan.shapes if name not in plan.filled)]


def add_rows(table: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return the table with the mean of its rows repeated up to `num_rows`."""
    if len(table) >= num_rows:
        return table
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(num_rows - len(table), -1)])


def store_plainly(model: nn.Module, device_of: Callable[[str], torch.device]) -> Store:
    """Return a Store that makes each tensor a parameter on its device."""

    def store(name: str, tensor: torch.Tensor) -> None:
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        module.register_parameter(leaf, nn.Parameter(tensor.to(device_of(name)), requires_grad=True))

    return store


def _match(
    plan: Plan, key: str, found: list[Target], shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> None:
    for target in found:
        wanted = shapes[target.name]
        expected = (wanted[0] * target.num_parts, *wanted[1:])
        if target.name in POSITION_TABLES:
            is_right = shape[-1] == wanted[-1]
        elif target.name.endswith(_VOCABULARY):
            is_right = shape[1:] == wanted[1:] and shape[0] <= wanted[0]
        else:
            is_right = shape == expected
        if not is_right:
            plan.problems.append(f"{key} has shape {list(shape)} and not {list(expected)}")
        plan.filled.add(target.name)
    plan.steps.append((key, found))


def _may_be_missing(model: nn.Module) -> set[str]:
    """Parameters that no output depends on: the LayerNorm over CLIP's pooled output."""
    return {name for name, _ in model.named_parameters() if name.startswith(f"{TOWER}post_layernorm.")}


def _summary(problems: list[str]) -> str:
    shown = "; ".join(problems[:_MAX_LISTED])
    more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
    return f"The weights do not fit the configuration ({len(problems)} tensors): {shown}{more}"


def _remedy(problems: list[str]) -> str:
    if all(PROJECTOR in problem for problem in problems):
        return "The checkpoint has no projector, or mm_projector_type in config.json is not its own."
    if all(TOWER in problem for problem in problems):
        return "The vision tower's files are incomplete, or its config.json is not its own."
    return "Check that all shards are there, and that config.json belongs to them."
