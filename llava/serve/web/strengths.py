"""Bradley-Terry strengths from pairwise votes, with intervals.

P(i preferred to j) = 1 / (1 + exp(s_j - s_i)); a tie is half a win of each. A tie more for every two models
that met keeps strengths finite where one won every time. Intervals come from the Fisher information, which
takes each vote for a coin toss: a little too wide where many are ties. Models that no chain of votes joins
cannot be compared; each such group has a mean of 0 of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_Z: Final = 1.959964
_MAX_STEPS: Final = 200
_LARGEST_STEP: Final = 1.0
"""Of any strength in one of Newton's steps: from far off a whole one overshoots."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How strongly a model is preferred, in log-odds against the mean of its group."""

    model: str
    strength: float
    low: float
    """Ends of the 95 % interval."""
    high: float
    group: int
    """0 is the largest set of models that votes join."""


def strengths(games: Sequence[tuple[str, str, float]]) -> list[Strength]:
    """Return the models' strengths, by group and then strongest first.

    games: (one model, the other, score of the first: 1, 0 or 0.5).
    """
    names = sorted({name for game in games for name in game[:2]})
    place = {name: number for number, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))  # [i, j]: how often i was preferred to j
    for one, other, score in games:
        wins[place[one], place[other]] += score
        wins[place[other], place[one]] += 1 - score
    groups = _groups(wins + wins.T > 0)
    found = []
    for number, members in enumerate(groups):
        values, errors = _fit(wins[np.ix_(members, members)])
        found += [
            Strength(names[i], float(s), float(s - _Z * e), float(s + _Z * e), number)
            for i, s, e in zip(members, values, errors, strict=True)
        ]
    return sorted(found, key=lambda item: (item.group, -item.strength, item.model))


def _fit(wins: Floats) -> tuple[Floats, Floats]:
    """Return strengths and standard errors by Newton's method: float64[M] each, strengths of mean 0."""
    met = wins + wins.T
    wins = wins + 0.5 * (met > 0)
    met = wins + wins.T
    values = np.zeros(len(wins))
    for _ in range(_MAX_STEPS):
        chances = 1 / (1 + np.exp(values[None, :] - values[:, None]))
        slope = (wins - met * chances).sum(1)
        weights = met * chances * (1 - chances)
        information = np.diag(weights.sum(1)) - weights
        # The information is singular along "all stronger alike"; the pseudo-inverse leaves that out.
        covariance = np.linalg.pinv(information, hermitian=True)
        step = covariance @ slope
        largest = float(np.abs(step).max())
        if largest < 1e-10:
            break
        values = values + step * min(1.0, _LARGEST_STEP / largest)
    return values - values.mean(), np.sqrt(np.diag(covariance).clip(0))


def _groups(met: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Return the connected sets of models, largest first."""
    left = set(range(len(met)))
    groups = []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(other) for one in edge for other in np.flatnonzero(met[one])} - group
        groups.append(sorted(group))
        left -= group
    return sorted(groups, key=lambda group: (-len(group), group))
