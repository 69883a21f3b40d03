"""The training loop: one process, plain PyTorch.

A `Task` gives batches by step number and the loss of a batch; `train` does the rest: accumulation over
micro-batches weighted by their targets, gradient clipping, learning rates, logging, checkpoints. Batches
depend on the step number only, so a run that was stopped and resumed ends with the same weights as one that
was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from llava.log import get_logger
from llava.train.muon import Muon

_logger = get_logger(__name__)

BatchT = TypeVar("BatchT")


class Task(Protocol[BatchT]):
    """What to learn: data and loss."""

    def batches(self, step: int) -> Sequence[BatchT]:
        """Return the micro-batches of a step; a pure function of the step number."""

    def num_targets(self, batch: BatchT) -> int:
        """Return how many targets a batch has: its weight within the step."""

    def loss(self, batch: BatchT) -> torch.Tensor:
        """Return the loss summed over the batch's targets."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train."""

    num_steps: int
    warmup_steps: int = 50
    final_share: float = 0.02
    """Learning rate at the end of the cosine, as a share of its peak."""
    max_grad_norm: float = 1.0
    log_every: int = 20
    checkpoint_every_s: float = 180.0
    """Seconds between checkpoints; one is written at the end in any case."""

    def lr_share(self, step: int) -> float:
        """Return the share of the peak learning rate at a step: linear warm-up, then a cosine."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def make_optimizers(
    groups: Iterable[tuple[Iterable[tuple[str, nn.Parameter]], float]],
    *,
    adam_share: float = 0.5,
    weight_decay: float = 0.01,
) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for everything else.

    groups: (named parameters, peak learning rate) pairs. Embeddings, heads, norms and biases get
        `adam_share` of the rate. Muon's rates are scaled to AdamW's update size, so one number serves both.
    """
    matrices, others = [], []
    for named, lr in groups:
        parameters = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        is_matrix = {name: parameter.ndim in (2, 4) and not _is_table(name) for name, parameter in parameters}
        matrices.append({"params": [p for name, p in parameters if is_matrix[name]], "lr": lr})
        others.append({"params": [p for name, p in parameters if not is_matrix[name]], "lr": lr * adam_share})
    optimizers: list[torch.optim.Optimizer] = [
        Muon([group for group in matrices if group["params"]], weight_decay=weight_decay),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _is_table(name: str) -> bool:
    return any(part in name for part in ("embed_tokens", "position_embeddings", "lm_head", "heads."))


@dataclass
class Loop(Generic[BatchT]):
    """A run in progress: the model, its optimizers and the step reached."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    task: Task[BatchT]
    config: LoopConfig
    folder: Path
    on_checkpoint: Callable[[int], None] | None = None
    """Called with the step after each checkpoint, for instance to measure accuracy."""
    step: int = 0

    def train(self) -> None:
        """Train to the last step, from the newest checkpoint in `folder` if there is one."""
        self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        last_saved = window_start = time.monotonic()
        window_loss, window_steps = 0.0, 0
        self.model.train()
        while self.step < self.config.num_steps:
            window_loss += self._one_step()
            window_steps += 1
            self.step += 1
            if self.step % self.config.log_every == 0 or self.step == self.config.num_steps:
                seconds = (time.monotonic() - window_start) / window_steps
                _logger.info(
                    "step=%d/%d loss=%.4f s_per_step=%.3f lr_share=%.3f",
                    *(self.step, self.config.num_steps, window_loss / window_steps, seconds),
                    self.config.lr_share(self.step),
                )
                window_loss, window_steps, window_start = 0.0, 0, time.monotonic()
            is_due = time.monotonic() - last_saved >= self.config.checkpoint_every_s
            if is_due or self.step == self.config.num_steps:
                self._checkpoint()
                last_saved = window_start = time.monotonic()
                window_loss, window_steps = 0.0, 0

    def _one_step(self) -> float:
        batches = self.task.batches(self.step)
        num_targets = sum(self.task.num_targets(batch) for batch in batches)
        step_loss = 0.0
        for batch in batches:
            loss = self.task.loss(batch) / num_targets
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        share = self.config.lr_share(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            optimizer.step()
            optimizer.zero_grad()
        return step_loss

    @property
    def _path(self) -> Path:
        return self.folder / "state.pt"

    def _checkpoint(self) -> None:
        """Write model, optimizers and step; the old file stays until the new one is complete."""
        partial = self._path.with_suffix(".partial")
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            },
            partial,
        )
        os.replace(partial, self._path)
        if self.on_checkpoint is not None:
            self.model.eval()
            self.on_checkpoint(self.step)
            self.model.train()

    def _resume(self) -> None:
        if not self._path.exists():
            return
        state = torch.load(self._path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step = state["step"]
        _logger.info("resumed step=%d from %s", self.step, self._path)
