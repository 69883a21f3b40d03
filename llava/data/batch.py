"""What travels from the data to the trainer: one encoded sample, and one micro-batch.

L tokens of a sample or row after pictures were expanded, B rows, P pictures, S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Example:
    """One training sample, encoded and cut to length."""

    index: int
    """Place in the mixture, from 0."""
    id: str
    source: str
    """Name of the mixture's entry, or the file's stem."""
    input_ids: list[int]
    """Token ids with ONE -200 per picture."""
    labels: list[int]
    """As long as input_ids, -100 where nothing is trained; a label is its own place's id (not shifted)."""
    pixel_values: torch.Tensor
    """float32[P, 3, S, S], normalised, in the order of the -200s; P is 0 for text."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch for one rank: either padded rows, or samples laid end to end in a single row.

    A batch without rows of its own (a rank that has nothing to do in this micro-step) has L == 0.
    """

    input_ids: torch.Tensor
    """int64[B, L]; a picture is -200 once per feature."""
    labels: torch.Tensor
    """int64[B, L]; -100 where nothing is trained, at pictures, at padding, and at the first token of a sample
    (nothing predicts it)."""
    position_ids: torch.Tensor
    """int64[B, L]; counts from 0 in every sample."""
    attention_mask: torch.Tensor | None
    """bool[B, L]; None when packed."""
    segments: tuple[int, ...] | None
    """Packed: lengths of the samples in the one row, sum L. Attention stays inside each. None when padded."""
    pixel_values: torch.Tensor
    """float32[P, 3, S, S], in the order in which the runs of -200 come, row by row."""
    num_targets: int
    """Labels that are not -100: what the loss is summed over."""
    num_tokens: int
    """Real positions, pictures' included, padding not."""
    ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Of each sample."""
    targets_per_sample: tuple[int, ...] = ()
    """Targets of each sample, in order, for loss by source."""

    @property
    def lengths(self) -> list[int]:
        """Length of each sample, padding not counted."""
        if self.segments is not None:
            return list(self.segments)
        return [] if self.attention_mask is None else self.attention_mask.sum(-1).tolist()

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        mask = self.attention_mask
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            attention_mask=None if mask is None else mask.to(device, non_blocking=True),
            pixel_values=self.pixel_values.to(device, non_blocking=True),
        )
