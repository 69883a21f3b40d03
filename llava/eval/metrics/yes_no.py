"""Answers to yes-or-no questions: how POPE and MME read them, and the table of right and wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_POPE_NEGATIONS = frozenset(("No", "no", "not"))


def pope_answer(text: str) -> str:
    """Return "no" if a word before the first period is No, no or not, else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _POPE_NEGATIONS & set(words) else "yes"


def mme_answer(text: str) -> str:
    """Return "yes" or "no" if the first four characters hold it, else "other"."""
    begin = text.lower()[:4]
    return "yes" if "yes" in begin else "no" if "no" in begin else "other"


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often which answer met which truth; "yes" is positive."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def count(cls, pairs: Iterable[tuple[str, str]]) -> Confusion:
        """Count pairs of (prediction, reference); predictions other than yes and no are left out."""
        counts = {("yes", "yes"): 0, ("yes", "no"): 0, ("no", "no"): 0, ("no", "yes"): 0}
        for pair in pairs:
            if pair in counts:
                counts[pair] += 1
        return cls(*counts.values())

    @property
    def samples(self) -> int:
        """How many pairs there are."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float:
        """Share of right ones; 0 where there are none."""
        return _ratio(self.tp + self.tn, self.samples)

    @property
    def precision(self) -> float:
        """Share of right ones among those answered "yes"; 0 where there are none."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of right ones among those that are "yes"; 0 where there are none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        precision, recall = self.precision, self.recall
        return _ratio(2 * precision * recall, precision + recall)

    @property
    def yes_ratio(self) -> float:
        """Share of "yes" among the answers."""
        return _ratio(self.tp + self.fp, self.samples)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
