"""The projector: from the vision tower's width to the language model's.

Module names are chosen so that the original's weight names follow by replacing `mm_projector` with
`multi_modal_projector`: a Sequential whose Linears sit at the original's indices. Types are those of the
original's `multimodal_projector/builder.py` (spec 2.1, 2.2): `linear`, `mlp{N}x_gelu`, the variant with a
LayerNorm in front (an `ln` in the name), `identity`.
"""

from __future__ import annotations

import re

from torch import nn

from llava.errors import ConfigError

PROJECTOR_TYPES = ("linear", "mlp2x_gelu", "mlp2x_gelu_ln", "identity")
"""The closed list shown in errors; any depth N is taken."""
_MLP = re.compile(r"mlp(\d+)x_gelu(.*)")
_LAYER_NORM_EPS = 1e-5


def build_projector(projector_type: str, *, tower_size: int, hidden_size: int) -> nn.Module:
    """Return the projector of a type: float[B, N, tower_size] -> float[B, N, hidden_size].

    Raises ConfigError for an unknown type, or `identity` between different widths.
    """
    if projector_type == "linear":
        return nn.Linear(tower_size, hidden_size)
    if projector_type == "identity":
        if tower_size != hidden_size:
            raise ConfigError(
                f"mm_projector_type is 'identity' between widths {tower_size} and {hidden_size}",
                remedy="Use a projector with weights, or a tower as wide as the language model.",
            )
        return nn.Identity()
    depth, has_layer_norm = parse_mlp(projector_type)
    layers: list[nn.Module] = [nn.LayerNorm(tower_size, eps=_LAYER_NORM_EPS)] if has_layer_norm else []
    layers.append(nn.Linear(tower_size, hidden_size))
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)


def parse_mlp(projector_type: str) -> tuple[int, bool]:
    """Return (number of Linears, whether a LayerNorm comes first) of an `mlp...` type."""
    match = _MLP.fullmatch(projector_type)
    if match is None or int(match[1]) < 1 or (match[2] and "ln" not in match[2]):
        raise ConfigError.of_field("mm_projector_type", projector_type, PROJECTOR_TYPES, source="config.json")
    return int(match[1]), "ln" in match[2]
