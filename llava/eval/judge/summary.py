"""What reviews come to: LLaVA's relative score, in the original's figures and order of rounding.

Source: `llava/eval/summarize_gpt_review.py` of the original. Reviews whose scores could not be read are told
and left out; the original counts them as -1 and -1, and so does `compat`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.eval.judge.review import is_score, scores_of
from llava.eval.questions import QuestionId

ALL = "all"
RULER = "================================="


@dataclass(frozen=True, slots=True)
class Means:
    """The mean scores of a group of reviews, from 0 to 10."""

    num_reviews: int
    first: float
    """Of the reference."""
    second: float
    """Of the model."""

    @property
    def relative(self) -> float:
        """The model's mean in percent of the reference's; NaN where that is 0."""
        return 100 * self.second / self.first if self.first else math.nan

    def figures(self) -> tuple[float, float, float]:
        """Return relative score, reference and model as the original prints them."""
        rounded = Means(self.num_reviews, round(self.first, 3), round(self.second, 3))
        return round(rounded.relative, 1), round(rounded.first * 10, 1), round(rounded.second * 10, 1)


@dataclass(frozen=True, slots=True)
class Summary:
    """Reviews by category."""

    means: Mapping[str, Means]
    """By category in alphabetical order, with "all"."""
    unread: Sequence[QuestionId]
    """Questions whose review has no scores, as far as they are left out."""
    num_reviews: int

    def lines(self) -> list[str]:
        """Return what the original prints of a file, below its name."""
        return [" ".join(str(part) for part in (name, *own.figures())) for name, own in self.means.items()]

    @property
    def notices(self) -> list[str]:
        """What to know before believing the score."""
        return unread_notices(self.unread, self.num_reviews, "reviews")

    def to_dict(self) -> dict[str, Any]:
        """Return the means, unrounded and as printed, as JSON values."""
        return {
            name: {
                "n": own.num_reviews,
                "mean": [own.first, own.second],
                "mean_round3": [round(own.first, 3), round(own.second, 3)],
                "printed": list(own.figures()),
            }
            for name, own in self.means.items()
        }


def summarise(
    records: Sequence[Mapping[str, Any]], *, ignore: Collection[QuestionId] = (), compat: bool = False
) -> Summary:
    """Return the means of reviews; `ignore` leaves questions out. Raises DataError for a broken record."""
    groups: dict[str, list[Sequence[float]]] = {}
    unread: list[QuestionId] = []
    ignored = {str(identity) for identity in ignore}
    num_reviews = 0
    for record in records:
        if str(record["question_id"]) in ignored:
            continue
        num_reviews += 1
        scores = scores_of(record)
        if not compat and not all(is_score(score) for score in scores):
            unread.append(record["question_id"])
            continue
        for name in {ALL, record.get("category", ALL)}:
            groups.setdefault(name, []).append(scores)
    return Summary({name: _means(groups[name]) for name in sorted(groups)}, unread, num_reviews)


def _means(scores: Sequence[Sequence[float]]) -> Means:
    first, second = np.asarray(scores, dtype=np.float64).mean(0).tolist()
    return Means(len(scores), first, second)


def unread_notices(unread: Sequence[QuestionId], total: int, what: str) -> list[str]:
    """Say how many replies of the judge could not be read, if any."""
    if not unread:
        return []
    shown = ", ".join(str(identity) for identity in unread[:10]) + (", ..." if len(unread) > 10 else "")
    return [f"{len(unread)} of {total} {what} have no score that can be read: not counted (question {shown})"]
