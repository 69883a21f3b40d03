"""The Muon optimizer for hidden matrices, in float32.

Beside AdamW for everything else. After Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
networks": momentum, then the singular values of the update are brought near 1 by five Newton-Schulz steps.
PyTorch's own version computes those in bfloat16, which a CPU without bf16 units runs far slower than float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; updates have AdamW's usual size (RMS 0.2)."""

    def __init__(self, params: Iterable[Any], *, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            update_group(group, self.state)


def update_group(group: dict[str, Any], state: dict[torch.Tensor, Any]) -> None:
    """Update a group's parameters that have a gradient; a convolution counts as a matrix [out, i * k * k]."""
    by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is not None:
            by_shape[parameter.shape].append(parameter)
    for parameters in by_shape.values():
        _update_same_shape(parameters, state, lr=group["lr"], weight_decay=group["weight_decay"])


def _update_same_shape(
    parameters: list[torch.Tensor], states: dict[torch.Tensor, Any], *, lr: float, weight_decay: float
) -> None:
    updates = []
    for parameter in parameters:
        assert parameter.grad is not None
        state = states[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        updates.append(parameter.grad.lerp(momentum, _MOMENTUM).flatten(1))
    directions = orthogonalise(torch.stack(updates))
    size = 0.2 * max(updates[0].shape) ** 0.5
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.mul_(1 - lr * weight_decay).add_(direction.view_as(parameter), alpha=-lr * size)


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the groups marked `is_matrix`, AdamW for the others, as one optimizer."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW looks for its step count in every state that is loaded; a matrix has none.
        everything = state["param_groups"]
        super().__setstate__(
            {**state, "param_groups": [group for group in everything if not group["is_matrix"]]}
        )
        self.param_groups = everything

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        everything = self.param_groups
        try:
            self.param_groups = [group for group in everything if not group["is_matrix"]]
            super().step()
        finally:
            self.param_groups = everything
        for group in everything:
            if group["is_matrix"]:
                update_group(group, self.state)


def orthogonalise(matrices: torch.Tensor, *, num_steps: int = 5) -> torch.Tensor:
    """Return matrices float[K, rows, columns] with the same singular vectors and singular values near 1."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
