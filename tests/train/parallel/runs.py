"""The short training run that every engine does: mixed pictures and text, with and without micro-steps."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from llava.train.forward import TrainingModel
from llava.train.parallel.engine import Engine
from tests.train.models import IMAGE_SIZE, Sample, num_targets, packed, random_samples, tiny_model

_SAMPLES = random_samples(12)
_PICTURES = [sample for sample in _SAMPLES if sample[2]]
_TEXTS = [sample for sample in _SAMPLES if not sample[2]]
STEPS: list[list[list[Sample]]] = [
    # Slots: micro-step k // 2 of rank k % 2. One rank has text only while the other has pictures.
    [_PICTURES[:2], _TEXTS[:1], _PICTURES[2:4], _TEXTS[1:2]],
    # Nobody has pictures.
    [_TEXTS[:2], _TEXTS[2:]],
    # A rank that has nothing to do, then one without pictures.
    [_PICTURES[4:6], [], _TEXTS[:2], _PICTURES[:1]],
    [_TEXTS[1:3], _PICTURES[6:], [], []],
]
LRS = [1e-2, 3e-3]
Figures = tuple[float, float]
"""Mean loss over the step's targets, and norm of all gradients."""


def make_optimizer(module: nn.Module) -> Optimizer:
    """Return AdamW over two groups with learning rates of their own."""
    learning = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    projector = [value for name, value in learning if "projector" in name]
    others = [value for name, value in learning if "projector" not in name]
    groups: list[dict[str, object]] = [{"params": projector, "weight_decay": 0.1}, {"params": others}]
    return AdamW(groups, lr=1.0, weight_decay=0.0)


def prepare(engine: Engine, learns: str) -> TrainingModel:
    """Give the engine a model of which some parts learn: "projector", "language" (and projector) or "all"."""
    model = tiny_model()
    parts = {"projector": ["projector"], "language": ["projector", "language_model", "lm_head"], "all": [""]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts[learns]))
    module = TrainingModel(model, image_size=IMAGE_SIZE, is_sharded=engine.is_sharded)
    engine.prepare(module, make_optimizer)
    return module


def train(engine: Engine, steps: list[list[list[Sample]]], *, max_grad_norm: float = 1.0) -> list[Figures]:
    """Run the steps, spread over as many ranks as there are, and return every step's figures."""
    figures = []
    for slots in steps:
        targets = sum(num_targets(samples) for samples in slots)
        own = slots[engine.rank :: engine.world_size]
        total = torch.zeros(1, dtype=torch.float64)
        for number, samples in enumerate(own, start=1):
            is_last = number == len(own)
            losses = engine.forward(packed(samples), is_last=is_last)
            engine.backward(losses.total / targets, is_last=is_last)
            total += losses.total.detach().double()
        norm = engine.step(max_grad_norm=max_grad_norm, lrs=LRS)
        figures.append((float(engine.sum(total)) / targets, norm))
    return figures


def change_by_a_step_that_is_no_number(engine: Engine) -> tuple[float, float]:
    """Return the norm of a gradient that is NaN on rank 0, and by how much it moved the weights there."""
    before = engine.full_state()
    losses = engine.forward(packed(_PICTURES[:1]))
    engine.backward(losses.total * (math.nan if engine.rank == 0 else 1.0), is_last=True)
    norm = engine.step(max_grad_norm=1.0, lrs=LRS)
    after = engine.full_state()
    return norm, max((float((after[name] - before[name]).abs().max()) for name in before), default=0.0)


def checkpoint(engine: Engine, folder: Path) -> None:
    """Save into a folder that rank 0 makes."""
    if engine.rank == 0:
        folder.mkdir(parents=True)
    engine.barrier()
    engine.save(folder)
