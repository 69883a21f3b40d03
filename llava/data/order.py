"""The order of an epoch: which samples come together in an optimizer step.

Place in the flow: after `scan` (which knows lengths), before `plan` (which spreads a step over ranks). An
order depends on seed and epoch alone: not on the number of ranks, the past, or anybody's random state. In the
original it came from the global random state, which ranks shared by luck, and a run that was resumed went on
in another order (spec, defect 23).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from llava.data.original_order import modality_length_order
from llava.errors import ConfigError, DataError

if TYPE_CHECKING:
    from llava.data.scan import Scan

Indices = np.ndarray[Any, np.dtype[np.int64]]
OrderMode = Literal["random", "length", "modality_length", "modality_length_llava", "sequential"]

MEGA_BATCHES = 50
"""Steps whose samples are sorted together in mode "length": enough for 98 % of padded rows to be real
positions, few enough for every epoch to meet its samples in other company."""


def epoch_order(
    scan: Scan,
    samples: Indices,
    *,
    mode: OrderMode,
    seed: int,
    epoch: int,
    global_batch: int,
    micro_batch: int = 1,
) -> Indices:
    """Return int64[n]: the usable `samples` in the order of one epoch; a step is `global_batch` in a row.

    samples: int64[M], what the epoch is made of, some maybe several times.
    mode: "random"; "length": steps of samples of like length, the steps shuffled; "sequential": as in the
        data; "modality_length" and "modality_length_llava": the original's sampler, evened out over the
        micro-batches of a step (`micro_batch` samples each), with a generator of its own.
    Raises DataError when no sample is usable.
    """
    if mode not in get_args(OrderMode):
        raise ConfigError.of_field("data.order", mode, get_args(OrderMode))
    usable = samples[scan.is_usable[samples]]
    if not len(usable):
        raise DataError(f"none of {len(samples)} samples can be trained on", remedy="Run: llava doctor DATA")
    if mode == "sequential":
        return usable
    if mode == "random":
        return _generator(seed, epoch).permutation(usable)
    if mode == "length":
        return usable[_by_length(scan.tokens[usable].astype(np.int64), _generator(seed, epoch), global_batch)]
    generator = torch.Generator().manual_seed(_state(seed, epoch))
    places = modality_length_order(
        scan.words[usable].tolist(),
        batch_size=micro_batch,
        world_size=max(1, global_batch // micro_batch),
        variant="internvl" if mode == "modality_length" else "llava",
        generator=generator,
        inner_generator=generator,
    )
    return usable[np.asarray(places, dtype=np.int64)]


def _by_length(lengths: Indices, generator: np.random.Generator, global_batch: int) -> Indices:
    """Sort within random mega-batches, cut them into steps, shuffle the steps; a smaller one stays last."""
    drawn = generator.permutation(len(lengths))
    size = MEGA_BATCHES * global_batch
    # Mega-batches of like size: a small last one could not sort much.
    num_mega = math.ceil(len(drawn) / size)
    num_steps = len(drawn) // global_batch
    bounds = [global_batch * (num_steps * number // num_mega) for number in range(num_mega)]
    sorted_parts = []
    for start, stop in zip(bounds, [*bounds[1:], len(drawn)], strict=True):
        part = drawn[start:stop]
        sorted_parts.append(part[np.argsort(-lengths[part], kind="stable")])
    ordered = np.concatenate(sorted_parts)
    steps = ordered[: num_steps * global_batch].reshape(num_steps, global_batch)
    return np.concatenate([steps[generator.permutation(num_steps)].reshape(-1), ordered[steps.size :]])


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng(_state(seed, epoch))


def _state(seed: int, epoch: int) -> int:
    """Mix seed and epoch into one number that torch takes too."""
    sequence = np.random.SeedSequence([seed % 2**64, epoch])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
