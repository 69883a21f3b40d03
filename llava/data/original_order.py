"""The original's sampler, `group_by_modality_length`, index for index, in both repositories' variants.

Samples with and without pictures are kept in separate batches, and lengths are evened out inside one global
batch. Source: `LengthGroupedSampler` in llava_trainer.py of OpenGVLab/InternVL (internvl_chat_llava) and of
haotian-liu/LLaVA. Lengths are words and not tokens, positive with a picture, negative without (`Scan.words`).

As the original, the functions draw from torch's global random state where no generator is given; the loop
gives its own (see `order`), so that an order depends on seed and epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from llava.errors import DataError

Variant = Literal["internvl", "llava"]


def modality_length_order(
    lengths: Sequence[int],
    *,
    batch_size: int,
    world_size: int,
    variant: Variant = "internvl",
    generator: torch.Generator | None = None,
    inner_generator: torch.Generator | None = None,
) -> list[int]:
    """Return all indices, samples with and without pictures in separate groups of world_size * batch_size.

    lengths: signed words per sample. generator: shuffles the groups; inner_generator: draws inside each kind
    (the original never passes it on, so that its inner draws come from the global state).
    Raises DataError where the original stops with ValueError or AssertionError: a length of 0, and, for
    "internvl", data without any sample of one kind.
    """
    if any(length == 0 for length in lengths):
        raise DataError(
            "a sample without words cannot be grouped by modality", remedy="Leave it out of the data."
        )
    kinds = [[i for i, length in enumerate(lengths) if (length > 0) is side] for side in (True, False)]
    with_pictures, text_only = kinds
    if variant == "llava" and not (with_pictures and text_only):
        # This variant falls back to grouping by length alone; the sign stays, so text comes shortest first.
        return length_order(lengths, batch_size=batch_size, world_size=world_size, generator=generator)
    if not (with_pictures and text_only):
        raise DataError(
            "grouping by modality needs samples with and without pictures, and all are of one kind",
            remedy="Use data.order length, or modality_length_llava.",
        )
    size = world_size * batch_size
    batches: list[list[int]] = []
    leftovers: list[int] = []
    for indices in kinds:
        inner = length_order(
            [abs(lengths[index]) for index in indices],
            batch_size=batch_size,
            world_size=world_size,
            generator=inner_generator,
        )
        groups = _groups([indices[place] for place in inner], size)
        batches += groups[:-1]
        leftovers += groups[-1]
    # The draw comes after both inner ones.
    shuffled = [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
    if variant == "llava":
        shuffled.append(sorted(leftovers))
    elif len(leftovers) >= size:
        shuffled = [leftovers[:size], *shuffled, leftovers[size:]]
    else:
        shuffled.append(leftovers)
    return [index for batch in shuffled for index in batch]


def length_order(
    lengths: Sequence[int], *, batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Return all indices in random groups of world_size * batch_size, each dealt evenly to the ranks."""
    permutation = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for group in _groups(permutation, world_size * batch_size):
        ranked = sorted(group, key=lambda index: lengths[index], reverse=True)
        for chunk in split_to_even_chunks(ranked, lengths, world_size):
            order += chunk
    return order


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal indices, longest first, to the chunk with the least length that is not full; strided if uneven."""
    if len(indices) % num_chunks:
        return [list(indices[start::num_chunks]) for start in range(num_chunks)]
    room = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals: list[float] = [0.0] * num_chunks
    for index in indices:
        shortest = totals.index(min(totals))
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(chunks[shortest]) == room:
            totals[shortest] = float("inf")
    return chunks


def _groups(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]
