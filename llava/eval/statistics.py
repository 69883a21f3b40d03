"""How sure a score is: intervals, paired comparisons, the smallest difference that can be seen, seeds.

Questions about one picture are not independent, so everything counts clusters (`Item.cluster`): means have
the analytic clustered standard error (Liang and Zeger 1986, as Miller 2024 recommends for evaluations), other
figures are recomputed from clusters drawn anew (the bootstrap). All intervals are of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from llava.errors import DataError
from llava.eval.benchmark import Item, Scoring
from llava.eval.questions import QuestionId

NUM_RESAMPLES = 1000
MAX_RESAMPLED_ITEMS = 4_000_000
"""Large benchmarks are resampled less often, and still often enough: their intervals are narrow."""
MIN_RESAMPLES = 40
ENOUGH_RESAMPLES = 200
"""From fewer, the interval is taken from their standard deviation and not from their quantiles."""
POWER = 0.8
Z = NormalDist().inv_cdf(0.975)
_FEW = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Quantiles of Student's distribution where its expansion is not good enough."""

Array = NDArray[np.float64]
ItemKey = tuple[QuestionId, int]
"""An id, and which of the items that have it."""


@dataclass(frozen=True)
class Interval:
    """A figure and how sure it is, in the figure's own unit."""

    value: float
    low: float
    high: float
    standard_error: float
    num_items: int
    num_clusters: int

    @property
    def smallest_difference(self) -> float:
        """The difference to another model of the same spread that is found 4 times in 5.

        Their answers are taken not to go together; comparing two runs question by question finds smaller
        ones (`Comparison.smallest_difference`).
        """
        return smallest_difference(math.sqrt(2) * self.standard_error)

    def to_dict(self) -> dict[str, float]:
        """Return the fields by name, with the smallest difference."""
        return asdict(self) | {"smallest_difference": self.smallest_difference}


@dataclass(frozen=True)
class Comparison:
    """The difference of a figure between two models on the same questions: the second less the first."""

    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    """How often so large a difference would come up between equally good models."""
    method: str
    num_items: int
    num_clusters: int

    @property
    def smallest_difference(self) -> float:
        """The difference that a benchmark of this size finds 4 times in 5 between these two."""
        return smallest_difference(self.standard_error)

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name, with the smallest difference."""
        return asdict(self) | {"smallest_difference": self.smallest_difference}


def interval(scoring: Scoring, figure: str | None = None, *, seed: int = 0) -> Interval | None:
    """Return the interval of a figure (the headline, if none is named); None where nothing is known of it."""
    name = figure or scoring.headline
    if scoring.aggregate is None and name == scoring.headline:
        return mean_interval(scoring.items)
    return intervals(scoring, seed=seed).get(name)


def intervals(scoring: Scoring, *, seed: int = 0) -> dict[str, Interval]:
    """Return the interval of every figure that can be computed from the items alone.

    A figure that comes out the same however clusters are drawn has none: its spread is not known.
    """
    if scoring.aggregate is None:
        return {scoring.headline: mean_interval(scoring.items)}
    draws = _Draws([scoring.items], seed=seed)
    drawn: dict[str, list[float]] = {}
    for (items,) in draws:
        for name, value in scoring.aggregate(items).items():
            drawn.setdefault(name, []).append(value)
    found = {}
    for name, value in scoring.aggregate(scoring.items).items():
        low, high, error = _spread(drawn.get(name, []), value)
        if not error > 0:
            continue
        found[name] = Interval(value, low, high, error, len(scoring.items), draws.num_clusters)
    return found


def mean_interval(items: Sequence[Item]) -> Interval:
    """Return the interval of 100 times the mean score.

    It is Wilson's, for as many answers as the clusters are worth.
    """
    scores, clusters = _columns(items)
    mean, error = float(scores.mean()), _clustered_error(scores, clusters)
    num_clusters = int(clusters.max()) + 1
    if num_clusters == 1:
        return Interval(100 * mean, 0.0, 100.0, math.nan, len(items), num_clusters)
    spread = mean * (1 - mean)
    # All right or all wrong says nothing about the spread: then every cluster is worth one answer.
    worth = spread / error**2 if error > 0 and spread > 0 else num_clusters
    t = student(num_clusters - 1)
    centre = (mean + t**2 / (2 * worth)) / (1 + t**2 / worth)
    half = t * math.sqrt(spread / worth + t**2 / (4 * worth**2)) / (1 + t**2 / worth)
    low, high = (100 * min(1.0, max(0.0, edge)) for edge in (centre - half, centre + half))
    return Interval(100 * mean, low, high, 100 * error, len(items), num_clusters)


def compare(first: Scoring, second: Scoring, *, seed: int = 0) -> Comparison:
    """Compare the headline of two models on the questions that both have an item of.

    Raises DataError when they have none in common, or not the same headline.
    """
    if first.headline != second.headline:
        raise DataError(f"{first.headline} and {second.headline} are different figures")
    pairs = paired(first.items, second.items)
    if not pairs:
        raise DataError("the two runs have no question in common")
    if first.aggregate is None or second.aggregate is None:
        return compare_means(pairs)
    name, aggregate = first.headline, first.aggregate
    draws = _Draws([[pair[0] for pair in pairs], [pair[1] for pair in pairs]], seed=seed)
    drawn = [aggregate(two)[name] - aggregate(one)[name] for one, two in draws]
    value = aggregate([pair[1] for pair in pairs])[name] - aggregate([pair[0] for pair in pairs])[name]
    low, high, error = _spread(drawn, value)
    finite = [difference for difference in drawn if math.isfinite(difference)]
    on_a_side = min(sum(d <= 0 for d in finite), sum(d >= 0 for d in finite))
    p_value = min(1.0, 2 * (on_a_side + 1) / (len(finite) + 1))
    return Comparison(value, low, high, error, p_value, "bootstrap", len(pairs), draws.num_clusters)


def compare_means(pairs: Sequence[tuple[Item, Item]]) -> Comparison:
    """Compare two means: exactly (McNemar) where answers are right or wrong and no two share a picture."""
    before = np.array([first.score for first, _ in pairs], dtype=np.float64)
    after = np.array([second.score for _, second in pairs], dtype=np.float64)
    _, clusters = _columns([first for first, _ in pairs])
    num_clusters, differences = int(clusters.max()) + 1, after - before
    difference, error = float(differences.mean()), _clustered_error(differences, clusters)
    half = student(num_clusters - 1) * error
    is_binary = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    if is_binary and num_clusters == len(pairs):
        p_value, method = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), "exact McNemar"
    else:
        p_value, method = _p_of(difference, error, num_clusters - 1), "clustered t"
    return Comparison(
        100 * difference,
        100 * (difference - half),
        100 * (difference + half),
        100 * error,
        p_value,
        method,
        len(pairs),
        num_clusters,
    )


def mcnemar(num_better: int, num_worse: int) -> float:
    """Return the exact two-sided p of as many changes to the better and to the worse."""
    total, fewer = num_better + num_worse, min(num_better, num_worse)
    if total == 0:
        return 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def smallest_difference(standard_error: float, *, power: float = POWER) -> float:
    """Return the true difference that is found significant with probability `power`."""
    return (Z + NormalDist().inv_cdf(power)) * standard_error


def seed_spread(values: Sequence[float]) -> Interval:
    """Return the mean over runs with different seeds and its interval; raises DataError for one run."""
    if len(values) < 2:
        raise DataError("one run says nothing about the spread over seeds", remedy="Give two or more.")
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    error = deviation / math.sqrt(len(values))
    half = student(len(values) - 1) * error
    return Interval(mean, mean - half, mean + half, error, len(values), len(values))


def student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's distribution (infinite for no degree of freedom)."""
    if degrees < 1:
        return math.inf
    if degrees in _FEW:
        return _FEW[degrees]
    # Expansion in 1/degrees (Fisher and Cornish 1960).
    return (
        Z
        + (Z**3 + Z) / (4 * degrees)
        + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
        + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * degrees**3)
    )


def paired(first: Sequence[Item], second: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Return the items of the same questions, in the order of the first."""
    others = _by_key(second)
    return [(item, others[key]) for key, item in _by_key(first).items() if key in others]


def _by_key(items: Sequence[Item]) -> dict[ItemKey, Item]:
    found: dict[ItemKey, Item] = {}
    counts: dict[QuestionId, int] = {}
    for item in items:
        count = counts[item.id] = counts.get(item.id, -1) + 1
        found[item.id, count] = item
    return found


def _columns(items: Sequence[Item]) -> tuple[Array, NDArray[np.int64]]:
    """Return float64[N] scores and int64[N] clusters, counted from 0."""
    if not items:
        raise DataError("there are no items to compute from")
    numbers: dict[str, int] = {}
    clusters = [numbers.setdefault(item.cluster, len(numbers)) for item in items]
    return np.array([item.score for item in items], dtype=np.float64), np.array(clusters, dtype=np.int64)


def _clustered_error(values: Array, clusters: NDArray[np.int64]) -> float:
    """Return the standard error of the mean of values whose clusters are independent."""
    sums = np.bincount(clusters, weights=values - values.mean())
    count = len(sums)
    correction = count / (count - 1) if count > 1 else 1.0
    return float(math.sqrt(correction * (sums**2).sum()) / len(values))


def _p_of(difference: float, error: float, degrees: int) -> float:
    if error == 0 or degrees < 1:
        return 1.0 if difference == 0 or degrees < 1 else 0.0
    t = abs(difference) / error
    z = t * (1 - 1 / (4 * degrees)) / math.sqrt(1 + t**2 / (2 * degrees))
    return 2 * (1 - NormalDist().cdf(z))


def _spread(drawn: Sequence[float], value: float) -> tuple[float, float, float]:
    """Return (low, high, standard error) of what was drawn; draws without a value are left out."""
    finite = np.array([draw for draw in drawn if math.isfinite(draw)], dtype=np.float64)
    if not len(finite) or not math.isfinite(value):
        return math.nan, math.nan, math.nan
    error = float(finite.std())
    if len(finite) < ENOUGH_RESAMPLES:
        return value - Z * error, value + Z * error, error
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high), error


class _Draws:
    """Samples of clusters, drawn anew with replacement; several lists of items are drawn alike.

    Clusters are drawn within their category where each belongs to one, so that no category comes out empty.
    """

    def __init__(self, lists: Sequence[Sequence[Item]], *, seed: int) -> None:
        self._lists = lists
        self._random = np.random.default_rng(seed)
        places: dict[str, list[int]] = {}
        categories: dict[str, set[str]] = {}
        for place, item in enumerate(lists[0]):
            places.setdefault(item.cluster, []).append(place)
            categories.setdefault(item.cluster, set()).add(item.category)
        self.num_clusters = len(places)
        is_within = all(len(names) == 1 for names in categories.values())
        strata: dict[str, list[list[int]]] = {}
        for cluster, own in places.items():
            strata.setdefault(next(iter(categories[cluster])) if is_within else "", []).append(own)
        self._strata = list(strata.values())
        items = max(1, len(lists[0]))
        self.num_draws = max(MIN_RESAMPLES, min(NUM_RESAMPLES, MAX_RESAMPLED_ITEMS // items))

    def __iter__(self) -> _Draws:
        self._left = self.num_draws
        return self

    def __next__(self) -> list[list[Item]]:
        if self._left == 0:
            raise StopIteration
        self._left -= 1
        places = [
            place
            for stratum in self._strata
            for number in self._random.integers(0, len(stratum), len(stratum))
            for place in stratum[number]
        ]
        return [[items[place] for place in places] for items in self._lists]
