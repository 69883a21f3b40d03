"""Encoded samples -> one micro-batch: samples laid end to end in one row, or padded rows.

Place in the flow: after `samples`, before the trainer. A picture's -200 becomes N of them here, so that
places, labels, positions and lengths are settled before the model sees anything. `compat` gives the
original's batches: `DataCollatorForSupervisedDataset` (train.py) and the expansion of
`prepare_inputs_labels_for_multimodal` (llava_arch.py) to the position, odd ones included.

B rows, L positions, P pictures, S pixels a side, N features per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Batch, Example


class PaddedRows(NamedTuple):
    """The original's collated batch: a picture is one -200."""

    input_ids: torch.Tensor
    """int64[B, L]"""
    labels: torch.Tensor
    """int64[B, L]"""
    attention_mask: torch.Tensor
    """bool[B, L]; False wherever the id is the padding's, inside a text too."""


def collate_packed(examples: Sequence[Example], *, num_image_tokens: int) -> Batch:
    """Lay samples end to end in one row [1, L], without padding; no samples give L == 0."""
    _check_places(examples)
    rows = [_expanded(example.input_ids, example.labels, num_image_tokens) for example in examples]
    lengths = [len(ids) for ids, _ in rows]
    positions = [torch.arange(length) for length in lengths]
    return _batch(
        examples,
        input_ids=_joined([ids for ids, _ in rows]),
        labels=_joined([labels for _, labels in rows]),
        position_ids=_joined(positions),
        targets=[_num_targets(labels) for _, labels in rows],
        num_tokens=sum(lengths),
        segments=tuple(lengths),
    )


def collate_padded(
    examples: Sequence[Example], *, num_image_tokens: int, pad_id: int, compat: bool = False
) -> Batch:
    """Pad samples on the right to the longest; no samples give B == L == 0.

    compat: pad before pictures are expanded, and mask by id, as the original does.
    """
    _check_places(examples)
    if not examples:
        rows = PaddedRows(*(torch.zeros(0, 0, dtype=kind) for kind in (torch.int64, torch.int64, torch.bool)))
    elif compat:
        samples = [(example.input_ids, example.labels) for example in examples]
        rows = expand_rows(pad_rows(samples, pad_id=pad_id), num_image_tokens, pad_id=pad_id)
        rows.labels[:, 0] = IGNORE_INDEX
    else:
        rows = _padded([_expanded(e.input_ids, e.labels, num_image_tokens) for e in examples], pad_id)
    num_tokens = sum(
        len(example.input_ids) + len(example.pixel_values) * (num_image_tokens - 1) for example in examples
    )
    return _batch(
        examples,
        input_ids=rows.input_ids,
        labels=rows.labels,
        position_ids=torch.arange(rows.input_ids.shape[1]).expand(rows.input_ids.shape),
        targets=[_num_targets(labels) for labels in rows.labels],
        num_tokens=num_tokens,
        attention_mask=rows.attention_mask,
    )


def pad_rows(
    samples: Sequence[tuple[Sequence[int], Sequence[int]]], *, pad_id: int, max_length: int | None = None
) -> PaddedRows:
    """Pad (ids, labels) on the right and cut them, a picture counting as one: the original's collator."""
    ids = _padded_tensor([torch.tensor(ids) for ids, _ in samples], pad_id)[:, :max_length]
    labels = _padded_tensor([torch.tensor(labels) for _, labels in samples], IGNORE_INDEX)[:, :max_length]
    return PaddedRows(ids, labels, ids != pad_id)


def expand_rows(rows: PaddedRows, num_image_tokens: int, *, pad_id: int) -> PaddedRows:
    """Expand pictures in padded rows as the original's model does.

    The padding is expanded along with the text, so that L grows by N - 1 times the most pictures of a row,
    and the mask of a row with pictures is moved right and filled with True at its left end.
    """
    expanded = [
        _expanded(ids.tolist(), labels.tolist(), num_image_tokens, keeps_first=True)
        for ids, labels in zip(rows.input_ids, rows.labels, strict=True)
    ]
    masks = []
    for (ids, _), mask in zip(expanded, rows.attention_mask, strict=True):
        masks.append(torch.cat([mask.new_ones(len(ids) - len(mask)), mask]))
    return PaddedRows(
        _padded_tensor([ids for ids, _ in expanded], pad_id),
        _padded_tensor([labels for _, labels in expanded], IGNORE_INDEX),
        _padded_tensor(masks, False),
    )


def _check_places(examples: Sequence[Example]) -> None:
    """Hold what everything after this relies on: one picture for every -200, sample by sample."""
    for example in examples:
        assert example.input_ids.count(IMAGE_TOKEN_INDEX) == len(example.pixel_values), example.id


def _padded(rows: Sequence[tuple[torch.Tensor, torch.Tensor]], pad_id: int) -> PaddedRows:
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    input_ids = _padded_tensor([ids for ids, _ in rows], pad_id)
    is_real = torch.arange(input_ids.shape[1]) < lengths[:, None]  # [B, L]
    return PaddedRows(input_ids, _padded_tensor([labels for _, labels in rows], IGNORE_INDEX), is_real)


def _expanded(
    input_ids: Sequence[int], labels: Sequence[int], num_image_tokens: int, *, keeps_first: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int64[L] ids with N times -200 per picture, and labels, -100 there and at the first position."""
    ids = torch.tensor(input_ids, dtype=torch.int64)
    is_picture = ids == IMAGE_TOKEN_INDEX
    targets = torch.tensor(labels, dtype=torch.int64).masked_fill(is_picture, IGNORE_INDEX)
    if not keeps_first:
        targets[:1] = IGNORE_INDEX
    if not is_picture.any():
        return ids, targets
    repeats = torch.ones_like(ids).masked_fill(is_picture, num_image_tokens)
    return ids.repeat_interleave(repeats), targets.repeat_interleave(repeats)


def _padded_tensor(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return int64[1, L]."""
    return torch.cat(list(rows))[None] if rows else torch.zeros(1, 0, dtype=torch.int64)


def _num_targets(labels: torch.Tensor) -> int:
    return int((labels != IGNORE_INDEX).sum())


def _batch(
    examples: Sequence[Example],
    *,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    position_ids: torch.Tensor,
    targets: Sequence[int],
    num_tokens: int,
    attention_mask: torch.Tensor | None = None,
    segments: tuple[int, ...] | None = None,
) -> Batch:
    pixels = [example.pixel_values for example in examples if len(example.pixel_values)]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        attention_mask=attention_mask,
        segments=segments,
        pixel_values=torch.cat(pixels) if pixels else torch.zeros(0, 3, 1, 1),
        num_targets=sum(targets),
        num_tokens=num_tokens,
        ids=tuple(example.id for example in examples),
        sources=tuple(example.source for example in examples),
        targets_per_sample=tuple(targets),
    )
