"""Pack many conversations about one picture into one sequence.

The system prompt and the picture come once; every conversation follows them as a segment that sees the
shared prefix and itself, at the positions it would have alone. One pass thus trains on a dozen conversations
with the ids, labels and attention that each has in chat. A conversation without a picture is a segment that
sees only itself. Used by `recipe.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.processing.supervision import Supervised


@dataclass
class Packed:
    """Sequences of one length, padded on the right.

    input_ids, labels, position_ids: int64[B, L]; a picture is `num_image_tokens` times -200 at `image_slice`.
    attends: bool[B, 1, L, L]; True where a query (third axis) may see a key.
    segments: int64[B, L]; 0 for prefix and padding, else 1 + index of the conversation.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    attends: torch.Tensor
    segments: torch.Tensor
    image_slice: slice


def pack(samples: Sequence[Sequence[Supervised]], *, num_image_tokens: int) -> Packed:
    """Pack conversations, one list per picture; those with a picture must all begin with the same prefix."""
    first = next(sample for group in samples for sample in group if IMAGE_TOKEN_INDEX in sample.input_ids)
    prefix = first.input_ids[: first.input_ids.index(IMAGE_TOKEN_INDEX)]
    start = len(prefix)
    shared = [*prefix, *[IMAGE_TOKEN_INDEX] * num_image_tokens]
    rows = [_pack_row(group, shared, num_prefix=start) for group in samples]
    length = max(len(row[0]) for row in rows)

    def table(column: int, fill: int) -> torch.Tensor:
        return torch.tensor([[*row[column], *[fill] * (length - len(row[column]))] for row in rows])  # [B, L]

    segments, sees_prefix = table(3, -1), table(4, 0).bool()
    same = segments[:, :, None] == segments[:, None, :]  # [B, L, L]
    to_prefix = sees_prefix[:, :, None] & (segments == 0)[:, None, :]
    attends = (same | to_prefix).tril_()
    return Packed(
        input_ids=table(0, 0),
        labels=table(1, IGNORE_INDEX),
        position_ids=table(2, 0),
        attends=attends[:, None],
        segments=segments.clamp(min=0),
        image_slice=slice(start, start + num_image_tokens),
    )


def _pack_row(group: Sequence[Supervised], shared: list[int], *, num_prefix: int) -> tuple[list[int], ...]:
    ids, labels = list(shared), [IGNORE_INDEX] * len(shared)
    positions, segments, sees_prefix = list(range(len(shared))), [0] * len(shared), [1] * len(shared)
    for index, sample in enumerate(group):
        has_image = IMAGE_TOKEN_INDEX in sample.input_ids
        skipped = num_prefix + 1 if has_image else 0
        assert not has_image or sample.input_ids[:num_prefix] == shared[:num_prefix], "prefixes differ"
        new = sample.input_ids[skipped:]
        first = len(shared) if has_image else 0
        ids += new
        labels += sample.labels[skipped:]
        positions += range(first, first + len(new))
        segments += [index + 1] * len(new)
        sees_prefix += [int(has_image)] * len(new)
    return ids, labels, positions, segments, sees_prefix


def additive(attends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask that transformers' models add to attention scores: 0 or the dtype's lowest value."""
    return torch.zeros(attends.shape, dtype=dtype).masked_fill_(~attends, torch.finfo(dtype).min)
