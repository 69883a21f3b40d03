"""Put picture features into a batch of prompts: one -200 per picture becomes that picture's features.

The original's calls give ids with ONE -200 per picture, on any padding side, and pictures as a tensor or a
list; this is the pure function under `modeling.LlavaForCausalLM`'s `forward` and `generate` for them. Rules
are those of the original's `prepare_inputs_labels_for_multimodal` (spec 5.5), without its truncation.

B rows, L tokens, N features per picture, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import PlaceholderError

Side = Literal["left", "right"]


class Spliced(NamedTuple):
    """The arguments of a model call on embeddings."""

    inputs_embeds: torch.Tensor
    """float[B, L', C]; zeros where padded."""
    attention_mask: torch.Tensor
    """bool[B, L']."""
    position_ids: torch.Tensor
    """int64[B, L']; counts real positions only."""
    labels: torch.Tensor | None
    """int64[B, L'], -100 at pictures and padding; None when none were given."""


def splice(
    input_ids: torch.Tensor,
    features: Sequence[torch.Tensor],
    embedding: torch.nn.Module,
    *,
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    padding_side: Side = "right",
) -> Spliced:
    """Replace every -200 of `input_ids: int64[B, L]` by the features of its picture, in order over the batch.

    features: one float[n, C] per picture. As in the original, a row without a -200 may bring one picture of
    its own that is not shown (it keeps the projector in the graph of a text-only batch).
    Raises PlaceholderError when placeholders and pictures differ in number.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    per_row = _features_per_row(input_ids, mask, features)
    row_embeds: list[torch.Tensor] = []
    row_labels: list[torch.Tensor] = []
    for row, (ids, keep) in enumerate(zip(input_ids, mask, strict=True)):
        ids = ids[keep]
        given = None if labels is None else labels[row][keep]
        embeds, targets = _splice_row(ids, given, per_row[row], embedding(ids))
        row_embeds.append(embeds)
        row_labels.append(targets)
    lengths = torch.tensor([len(embeds) for embeds in row_embeds], device=input_ids.device)
    is_real = torch.arange(int(lengths.max()), device=input_ids.device) < lengths[:, None]  # [B, L']
    is_real = is_real.flip(1) if padding_side == "left" else is_real
    return Spliced(
        inputs_embeds=pad_sequence(row_embeds, batch_first=True, padding_side=padding_side),
        attention_mask=is_real,
        position_ids=(is_real.cumsum(-1) - 1).clamp(min=0),
        labels=None
        if labels is None
        else pad_sequence(
            row_labels, batch_first=True, padding_value=IGNORE_INDEX, padding_side=padding_side
        ),
    )


def picture_batches(images: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return one float[n, 3, H, W] per picture of float[B, 3, H, W], float[B, n, 3, H, W] or a list.

    A picture with several crops becomes one run of features.
    """
    return [image[None] if image.ndim == 3 else image for image in images]


def _features_per_row(
    input_ids: torch.Tensor, mask: torch.Tensor, features: Sequence[torch.Tensor]
) -> list[list[torch.Tensor]]:
    counts = ((input_ids == IMAGE_TOKEN_INDEX) & mask).sum(-1).tolist()
    with_hidden = [max(count, 1) for count in counts]
    if len(features) == sum(counts):
        taken = counts
    elif len(features) == sum(with_hidden):
        taken = with_hidden
    else:
        raise PlaceholderError(
            f"the prompt has {sum(counts)} <image> placeholder(s) for {len(features)} picture(s)",
            remedy="Give one placeholder per picture.",
        )
    source: Iterator[torch.Tensor] = iter(features)
    return [[next(source) for _ in range(count)] for count in taken]


def _splice_row(
    ids: torch.Tensor, labels: torch.Tensor | None, features: list[torch.Tensor], embeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (float[L', C], int64[L']) of one row without padding."""
    labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    places = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
    if not places:
        # Features of a picture that is not shown: no rows, but a place in the graph.
        return torch.cat([embeds, *(hidden[:0].to(embeds) for hidden in features)]), labels
    parts: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    start = 0
    for place, feature in zip(places, features, strict=True):
        parts += [embeds[start:place], feature.to(embeds)]
        targets += [labels[start:place], labels.new_full((len(feature),), IGNORE_INDEX)]
        start = place + 1
    return torch.cat([*parts, embeds[start:]]), torch.cat([*targets, labels[start:]])
