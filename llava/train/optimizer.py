"""The optimizer of a name, over parameter groups that already carry their learning rates.

`stages.parameter_groups` makes the groups; engines call `make_optimizer` on what they have wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llava.errors import ConfigError, DependencyError
from llava.train.config import OptimizerOptions
from llava.train.muon import MuonWithAdamW

OPTIMIZERS = ("adamw", "adamw_8bit", "muon", "sgd")


def make_optimizer(
    groups: Sequence[dict[str, Any]], options: OptimizerOptions, module: nn.Module
) -> torch.optim.Optimizer:
    """Return the optimizer `options.name` over `groups` (each with "params", "lr", "weight_decay").

    module: holds the parameters; Muon leaves its lookup tables and its head to AdamW. Raises ConfigError for
    an unknown name, DependencyError where a package is missing.
    """
    betas = (options.beta1, options.beta2)
    if options.name == "adamw":
        return torch.optim.AdamW(list(groups), betas=betas, eps=options.epsilon)
    if options.name == "sgd":
        return torch.optim.SGD(list(groups), momentum=options.beta1)
    if options.name == "muon":
        return MuonWithAdamW(_split_matrices(groups, module), betas=betas, eps=options.epsilon)
    if options.name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise DependencyError.of_extra("bitsandbytes", "quantize", "optimizer.name adamw_8bit") from None
        return AdamW8bit(list(groups), betas=betas, eps=options.epsilon)
    raise ConfigError.of_field("optimizer.name", options.name, OPTIMIZERS)


def _split_matrices(groups: Sequence[dict[str, Any]], module: nn.Module) -> list[dict[str, Any]]:
    """Return each group as two: hidden matrices, and tables, head, norms and biases."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    is_outer = ("lm_head", "position_embedding", "cls_token", "class_embedding")
    tables |= {id(p) for name, p in module.named_parameters() if any(word in name for word in is_outer)}
    split = []
    for group in groups:
        is_matrix = [p.ndim in (2, 4) and id(p) not in tables for p in group["params"]]
        for wanted in (True, False):
            params = [p for p, is_one in zip(group["params"], is_matrix, strict=True) if is_one is wanted]
            if params:
                split.append({**group, "params": params, "is_matrix": wanted})
    return split
