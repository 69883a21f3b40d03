"""Spread the samples of one optimizer step over ranks and micro-steps, by their lengths.

Pure functions of lengths and limits. Every rank gets the same number of micro-batches, or the engines'
collective calls would not meet; which rank has which sample does not change the step's gradient, because the
loss is a sum over tokens divided once. Slot k of a result is rank k % num_ranks in micro-step k // num_ranks.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

QUADRATIC_COST = 1 / (12 * 4096)
"""Cost of attention in a sample of l positions: l * l times this, beside l for all the rest. A layer of width
C takes 24 C * C operations a position and about 2 C l for causal attention, so the ratio is 1 / (12 C)."""


def spread_packed(
    lengths: Sequence[int], *, num_ranks: int, micro_tokens: int, quadratic: float = QUADRATIC_COST
) -> list[list[int]]:
    """Return for each slot the places of its samples, as few slots as balanced filling allows.

    A slot holds at most `micro_tokens` positions, or one sample that is longer. Longest first, each sample
    goes to the cheapest slot with room for it.
    """
    taken = sum(min(length, micro_tokens) for length in lengths)
    num_micro = max(1, math.ceil(taken / (num_ranks * micro_tokens)))
    while (bins := _filled(lengths, num_micro * num_ranks, micro_tokens, quadratic)) is None:
        num_micro += 1
    costs = [sum(_cost(lengths[place], quadratic) for place in one) for one in bins]
    return _in_turns(bins, costs, num_ranks)


def spread_padded(
    lengths: Sequence[int], *, num_ranks: int, micro_batch: int, keeps_order: bool = False
) -> list[list[int]]:
    """Return for each slot the places of its samples: at most `micro_batch`, alike in length.

    keeps_order: take the samples as they come, `micro_batch` in a row, as the original does.
    """
    num_slots = num_ranks * math.ceil(math.ceil(len(lengths) / micro_batch) / num_ranks)
    if keeps_order:
        starts = range(0, num_slots * micro_batch, micro_batch)
        everything = list(range(len(lengths)))
        return [everything[start : start + micro_batch] for start in starts]
    ranked = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    # As even as can be, so that no slot is empty where there are samples enough.
    bounds = [len(ranked) * slot // num_slots for slot in range(num_slots + 1)]
    slots = [ranked[start:stop] for start, stop in itertools.pairwise(bounds)]
    costs = [len(one) * max((lengths[place] for place in one), default=0) for one in slots]
    return _in_turns(slots, costs, num_ranks)


def _filled(
    lengths: Sequence[int], num_bins: int, micro_tokens: int, quadratic: float
) -> list[list[int]] | None:
    """Fill `num_bins` bins, cheapest first; None when some sample finds no room."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    room = [micro_tokens] * num_bins
    # (cost so far, bin): the cheapest is on top, ties go to the first.
    queue = [(0.0, number) for number in range(num_bins)]
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        length = lengths[place]
        passed = []
        while queue:
            cost, number = heapq.heappop(queue)
            if length <= room[number] or not bins[number]:
                bins[number].append(place)
                room[number] -= length
                heapq.heappush(queue, (cost + _cost(length, quadratic), number))
                break
            passed.append((cost, number))
        else:
            return None
        for item in passed:
            heapq.heappush(queue, item)
    return bins


def _cost(length: int, quadratic: float) -> float:
    return length + quadratic * length * length


def _in_turns(bins: list[list[int]], costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Put bins of like cost in one micro-step, and let ranks take turns at the costliest of it."""
    ranked = sorted(range(len(bins)), key=lambda number: (-costs[number], number))
    slots: list[list[int]] = []
    for step, start in enumerate(range(0, len(ranked), num_ranks)):
        group = ranked[start : start + num_ranks]
        slots += [bins[number] for number in (group if step % 2 == 0 else reversed(group))]
    return slots
