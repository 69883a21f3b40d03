"""Spreading a step: every sample once, limits kept, as many micro-batches on every rank, costs alike."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.packing import spread_packed, spread_padded
from tests.data.samples import length_mix

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=60)
RANKS = st.sampled_from([1, 2, 3, 4, 8])


def flat(slots: list[list[int]]) -> list[int]:
    return [place for slot in slots for place in slot]


@settings(deadline=None, max_examples=150)
@given(LENGTHS, RANKS, st.integers(1, 1500))
def test_packed_slots_keep_every_promise(lengths: list[int], num_ranks: int, micro_tokens: int) -> None:
    slots = spread_packed(lengths, num_ranks=num_ranks, micro_tokens=micro_tokens)
    assert sorted(flat(slots)) == list(range(len(lengths)))
    assert len(slots) % num_ranks == 0
    for slot in slots:
        assert len(slot) == 1 or sum(lengths[place] for place in slot) <= micro_tokens
    assert slots == spread_packed(list(lengths), num_ranks=num_ranks, micro_tokens=micro_tokens)
    # Never more micro-steps than one sample a slot takes.
    assert len(slots) <= num_ranks * math.ceil(len(lengths) / num_ranks)


@settings(deadline=None, max_examples=150)
@given(LENGTHS, RANKS, st.integers(1, 9), st.booleans())
def test_padded_slots_keep_every_promise(
    lengths: list[int], num_ranks: int, micro_batch: int, keeps_order: bool
) -> None:
    slots = spread_padded(lengths, num_ranks=num_ranks, micro_batch=micro_batch, keeps_order=keeps_order)
    assert sorted(flat(slots)) == list(range(len(lengths)))
    assert len(slots) % num_ranks == 0
    assert max(len(slot) for slot in slots) <= micro_batch
    assert len(slots) == num_ranks * math.ceil(math.ceil(len(lengths) / micro_batch) / num_ranks)
    if keeps_order:
        assert flat(slots) == list(range(len(lengths)))
    elif len(lengths) >= len(slots):
        assert all(slots)


def test_packed_ranks_carry_alike_and_attention_counts() -> None:
    lengths = length_mix(512).tolist()
    for num_ranks in (2, 4, 8):
        slots = spread_packed(lengths, num_ranks=num_ranks, micro_tokens=8192, quadratic=1e-3)
        costs = [sum(lengths[p] + 1e-3 * lengths[p] ** 2 for p in slot) for slot in slots]
        by_rank = [sum(costs[rank::num_ranks]) for rank in range(num_ranks)]
        assert max(by_rank) / (sum(by_rank) / num_ranks) < 1.01
        for start in range(0, len(costs), num_ranks):
            together = costs[start : start + num_ranks]
            assert max(together) / min(together) < 1.02


def test_long_samples_get_company_of_few_tokens_where_attention_is_costly() -> None:
    lengths = [1000, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100]
    by_tokens = spread_packed(lengths, num_ranks=2, micro_tokens=2000, quadratic=0.0)
    by_cost = spread_packed(lengths, num_ranks=2, micro_tokens=2000, quadratic=1e-3)
    assert sorted(sum(lengths[p] for p in slot) for slot in by_tokens) == [1000, 1000]
    assert [0] in by_cost


def test_few_slots_are_used_on_the_usual_mix() -> None:
    """A step's tokens fill their slots to nine tenths, so that matrix products are large."""
    lengths = length_mix(1024).tolist()
    slots = spread_packed(lengths, num_ranks=8, micro_tokens=4096)
    assert sum(lengths) / (len(slots) * 4096) > 0.9


def test_a_sample_over_the_limit_is_alone() -> None:
    slots = spread_packed([50, 5, 5], num_ranks=1, micro_tokens=20)
    assert sorted(slots) == [[0], [1, 2]]


def test_padded_slots_hold_samples_of_like_length() -> None:
    lengths = [9, 1, 8, 2, 7, 3]
    slots = spread_padded(lengths, num_ranks=1, micro_batch=2)
    assert sorted(sorted(lengths[p] for p in slot) for slot in slots) == [[1, 2], [3, 7], [8, 9]]
