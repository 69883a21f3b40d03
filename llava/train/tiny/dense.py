"""Per-patch labels for a generated picture, and the heads that learn them.

Stage 0 of the embedded model's recipe (`recipe.py`): nothing pretrained is at hand, so the vision tower first
learns to say for every patch what lies there. Each property has a linear head of its own on the very features
that the projector reads: that keeps shape, colour and place apart for the language model. The heads are
dropped after training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from llava.demo.drawing import Drawing
from llava.demo.scenes import CELLS, COLORS, ICONS, SHAPES, Scene, Thing

HEADS: dict[str, int] = {
    "kind": 3 + len(SHAPES),
    "color": 1 + len(COLORS),
    "pair": 1 + len(SHAPES) * len(COLORS),
    "cell": 1 + len(CELLS),
    "icon": 1 + len(ICONS),
    "tens": 12,
    "units": 11,
    "digit": 11,
    "same_shape": 5,
    "same_color": 5,
    "num_shapes": 5,
}
"""Head -> number of classes. Class 0 is "nothing of the kind here", except in `num_shapes`, a count."""

_MIN_COVERED = 0.1
"""A patch belongs to a thing that covers this share of it."""


def patch_labels(scene: Scene, drawing: Drawing, *, grid: int, patch_size: int) -> np.ndarray:
    """Return int64[N, len(HEADS)] for the N = grid x grid patches of the padded picture, row by row."""
    owner = _patch_owner(drawing.owner, grid=grid, patch_size=patch_size, num_labels=7)  # [N]
    rows = [[0] * len(HEADS)] + [_thing_labels(scene, thing) for thing in scene.things]
    labels = np.array(rows, dtype=np.int64)[owner]  # [N, heads]
    labels[:, list(HEADS).index("num_shapes")] = len(scene.shapes)
    labels[:, list(HEADS).index("digit")] = _patch_owner(
        drawing.digits, grid=grid, patch_size=patch_size, num_labels=10
    )
    return labels


def _patch_owner(owner: Image.Image, *, grid: int, patch_size: int, num_labels: int) -> np.ndarray:
    """Return the label of each patch, 0 for background: the one that covers most of it."""
    side = max(owner.size)
    square = Image.new("L", (side, side), 0)
    square.paste(owner, ((side - owner.width) // 2, (side - owner.height) // 2))
    size = grid * patch_size
    pixels = np.asarray(square.resize((size, size), Image.Resampling.NEAREST))
    patches = (
        pixels.reshape(grid, patch_size, grid, patch_size).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    )
    counts = np.stack(
        [(patches == value).sum(1) for value in range(1, num_labels + 1)], axis=1
    )  # [N, labels]
    return np.where(counts.max(1) >= _MIN_COVERED * patch_size**2, counts.argmax(1) + 1, 0)


def _thing_labels(scene: Scene, thing: Thing) -> list[int]:
    labels = dict.fromkeys(HEADS, 0)
    labels["cell"] = 1 + thing.cell
    if thing.kind == "number":
        labels["kind"] = 1 + len(SHAPES)
        labels["tens"] = 1 if len(thing.name) == 1 else 2 + int(thing.name[0])
        labels["units"] = 1 + int(thing.name[-1])
    elif thing.kind == "icon":
        labels["kind"] = 2 + len(SHAPES)
        labels["icon"] = 1 + ICONS.index(thing.name)
    else:
        shape, color = SHAPES.index(thing.name), list(COLORS).index(thing.color or "")
        labels["kind"] = 1 + shape
        labels["color"] = 1 + color
        labels["pair"] = 1 + shape * len(COLORS) + color
        labels["same_shape"] = sum(other.name == thing.name for other in scene.shapes)
        labels["same_color"] = sum(other.color == thing.color for other in scene.shapes)
    return list(labels.values())


class DenseHeads(nn.Module):
    """One linear classifier per property, on the tower's patch features."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, size) for name, size in HEADS.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits float[B, N, classes] per head for features float[B, N, C]."""
        normed = self.norm(features)
        return {name: head(normed) for name, head in self.heads.items()}


def dense_loss(logits: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of the heads' losses for labels int64[B, N, heads].

    Background outnumbers things, so each head's loss is the mean over patches that have the property plus a
    quarter of the mean over those that do not.
    """
    total = labels.new_zeros((), dtype=torch.float32)
    for index, (name, values) in enumerate(logits.items()):
        target = labels[..., index].flatten()
        losses = F.cross_entropy(values.flatten(0, 1), target, reduction="none")
        has_property = target > 0
        if name == "num_shapes":
            total = total + losses.mean()
            continue
        weights = torch.where(
            has_property, 1.0 / has_property.sum().clamp(min=1), 0.25 / (~has_property).sum().clamp(min=1)
        )
        total = total + (losses * weights).sum()
    return total


@torch.no_grad()
def dense_accuracy(logits: Mapping[str, torch.Tensor], labels: torch.Tensor) -> dict[str, float]:
    """Return each head's accuracy over the patches that have its property."""
    result = {}
    for index, (name, values) in enumerate(logits.items()):
        target = labels[..., index]
        counted = target > 0
        result[name] = float((values.argmax(-1) == target)[counted].float().mean())
    return result
