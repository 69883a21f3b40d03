"""Intervals cover what they promise, comparisons find what is there and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from llava.errors import DataError
from llava.eval.benchmark import Figures, Item, Scoring
from llava.eval.statistics import (
    compare,
    interval,
    intervals,
    mcnemar,
    mean_interval,
    paired,
    seed_spread,
    smallest_difference,
    student,
)

NUM_TRIALS = 400


def drawn(
    random: np.random.Generator, num_clusters: int, size: int, *, mean: float, spread: float
) -> list[Item]:
    """Questions about pictures of which some are harder than others (`spread` on the scale of log odds)."""
    odds = math.log(mean / (1 - mean)) + spread * random.standard_normal(num_clusters)
    chances = 1 / (1 + np.exp(-odds))
    return [
        Item(id=f"{cluster}-{n}", score=float(random.random() < chances[cluster]), cluster=f"{cluster}")
        for cluster in range(num_clusters)
        for n in range(size)
    ]


def true_mean(mean: float, spread: float) -> float:
    odds = math.log(mean / (1 - mean)) + spread * np.random.default_rng(9).standard_normal(400_000)
    return float((1 / (1 + np.exp(-odds))).mean())


def scoring_of(items: Sequence[Item], *, is_drawn: bool = False) -> Scoring:
    def aggregate(some: Sequence[Item]) -> Figures:
        return {"accuracy": 100 * sum(item.score for item in some) / len(some)}

    figures = aggregate(items)
    return Scoring("accuracy", figures, items, aggregate if is_drawn else None)


@pytest.mark.parametrize(("num_clusters", "size", "mean"), [(60, 1, 0.9), (100, 6, 0.7), (40, 3, 0.5)])
def test_intervals_cover_the_truth_as_often_as_they_say(num_clusters: int, size: int, mean: float) -> None:
    random, spread = np.random.default_rng(1), 0.0 if size == 1 else 1.5
    truth = 100 * true_mean(mean, spread)
    found = [
        mean_interval(drawn(random, num_clusters, size, mean=mean, spread=spread)) for _ in range(NUM_TRIALS)
    ]
    covered = sum(one.low <= truth <= one.high for one in found) / NUM_TRIALS
    # Three standard deviations of a share of 0.95 over so many trials, and what an approximation may lose.
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / NUM_TRIALS) - 0.01 <= covered


def test_questions_that_share_a_picture_make_the_interval_wider() -> None:
    items = drawn(np.random.default_rng(2), 50, 10, mean=0.6, spread=3)
    alone = [Item(id=item.id, score=item.score, cluster=str(item.id)) for item in items]
    assert mean_interval(items).standard_error > 1.5 * mean_interval(alone).standard_error
    assert mean_interval(items).num_clusters == 50


def test_drawing_anew_agrees_with_the_formula() -> None:
    items = drawn(np.random.default_rng(3), 150, 4, mean=0.6, spread=1.5)
    by_formula, by_drawing = mean_interval(items), interval(scoring_of(items, is_drawn=True))
    assert by_drawing is not None
    assert by_drawing.value == pytest.approx(by_formula.value)
    assert by_drawing.standard_error == pytest.approx(by_formula.standard_error, rel=0.1)
    assert by_drawing == interval(scoring_of(items, is_drawn=True)), "the same seed, the same interval"


def test_large_benchmarks_are_drawn_less_often_and_agree_with_the_formula() -> None:
    items = drawn(np.random.default_rng(6), 30_000, 2, mean=0.6, spread=1.5)
    by_formula, by_drawing = mean_interval(items), interval(scoring_of(items, is_drawn=True))
    assert by_drawing is not None
    assert by_drawing.standard_error == pytest.approx(by_formula.standard_error, rel=0.35)
    assert by_drawing.low < by_formula.value < by_drawing.high


def test_a_perfect_score_is_not_certain() -> None:
    items = [Item(id=n, score=1.0, cluster=str(n)) for n in range(20)]
    found = mean_interval(items)
    assert (found.value, found.high) == (100, 100)
    assert 80 < found.low < 90


def test_one_picture_says_nothing_about_others() -> None:
    found = mean_interval([Item(id=n, score=n % 2, cluster="only") for n in range(10)])
    assert (found.value, found.low, found.high) == (50, 0, 100)


def test_no_category_is_drawn_empty() -> None:
    items = [Item(id=n, score=n % 2, cluster=str(n), category="ab"[n == 0]) for n in range(30)]

    def aggregate(some: Sequence[Item]) -> Figures:
        return {name: np.mean([item.score for item in some if item.category == name]).item() for name in "ab"}

    found = intervals(Scoring("a", aggregate(items), items, aggregate))
    assert math.isfinite(found["a"].low)
    assert "b" not in found, "one question says nothing about the spread"


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (10, 2, 0.038574)]
)
def test_mcnemar_is_exact(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-6)


def changed(random: np.random.Generator, items: Sequence[Item], *, worse: float, better: float) -> list[Item]:
    """Let wrong answers become right and right ones wrong with these chances."""
    flips = [random.random() < (worse if item.score else better) for item in items]
    return [replace(item, score=abs(item.score - flip)) for item, flip in zip(items, flips, strict=True)]


@pytest.mark.parametrize(("better", "low", "high"), [(0.0, 0, 20), (0.4, 190, 200)])
def test_equal_models_are_rarely_found_different_and_better_ones_mostly(
    better: float, low: int, high: int
) -> None:
    random, num_found = np.random.default_rng(4), 0
    for _ in range(200):
        common = drawn(random, 100, 4, mean=0.6, spread=1.5)
        first = changed(random, common, worse=0.05, better=0.05)
        second = changed(random, common, worse=0.05, better=0.05 + better)
        num_found += compare(scoring_of(first), scoring_of(second)).p_value < 0.05
    assert low <= num_found <= high


def test_a_comparison_names_its_method_and_matches_questions_by_id() -> None:
    first = [Item(id=n, score=n % 2, cluster=str(n)) for n in range(20)]
    second = [Item(id=n, score=1.0, cluster=str(n)) for n in reversed(range(5, 25))]
    found = compare(scoring_of(first), scoring_of(second))
    assert (found.num_items, found.method) == (15, "exact McNemar")
    assert found.difference == pytest.approx(100 * 7 / 15)
    clustered = [Item(id=item.id, score=item.score, cluster="ab"[int(item.id) % 2]) for item in first]
    assert compare(scoring_of(clustered), scoring_of(second)).method == "clustered t"
    drawn_anew = compare(scoring_of(first, is_drawn=True), scoring_of(second, is_drawn=True))
    assert drawn_anew.method == "bootstrap"
    assert drawn_anew.difference == pytest.approx(found.difference)
    assert drawn_anew.p_value < 0.05
    with pytest.raises(DataError, match="no question in common"):
        compare(scoring_of(first[:3]), scoring_of(second))


def test_items_that_share_an_id_are_matched_in_order() -> None:
    twice = [Item(id="a", score=0, cluster="a"), Item(id="a", score=1, cluster="a")]
    assert [(one.score, two.score) for one, two in paired(twice, twice)] == [(0, 0), (1, 1)]


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    random, error = np.random.default_rng(5), 1.7
    true = smallest_difference(error)
    observed = true + error * random.standard_normal(20_000)
    assert (np.abs(observed) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.01)


def test_seeds() -> None:
    found = seed_spread([60.0, 62.0, 61.0])
    assert found.value == pytest.approx(61)
    assert found.high - found.value == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    with pytest.raises(DataError, match="one run"):
        seed_spread([60.0])


@pytest.mark.parametrize(("degrees", "value"), [(5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)])
def test_students_quantile(degrees: int, value: float) -> None:
    assert student(degrees) == pytest.approx(value, abs=4e-3)
