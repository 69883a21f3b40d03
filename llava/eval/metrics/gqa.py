"""The tables of GQA's official scorer that need neither scene graphs nor the file of choices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_UNCOUNTED = ("exist", "query: name", "choose name")
"""Operations of a question's program that are no step of reasoning."""

TABLES = {
    "accuracyPerStructuralType": "structural",
    "accuracyPerSemanticType": "semantic",
    "accuracyPerSteps": "steps",
    "accuracyPerLength": "words",
}
"""Name of each table and of the trait that it goes by."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the tables group a question by."""

    structural: str
    semantic: str
    steps: int
    words: int
    group: str | None
    """Questions of a group have answers of one kind, as colours."""


def traits_of(question: Mapping[str, Any]) -> Traits:
    """Return the traits of an official question record; raises KeyError where it lacks a field."""
    operations = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    steps = [text for text in operations if not any(mark in text for mark in _UNCOUNTED)]
    return Traits(
        structural=question["types"]["structural"],
        semantic=question["types"]["semantic"],
        steps=len(steps),
        words=len(question["question"].split()),
        group=question["groups"]["global"],
    )


def prediction_of(text: str) -> str:
    """Return an answer as the original hands it in: without periods at the end, in lower case."""
    return text.rstrip(".").lower()


def percent(scores: Sequence[float]) -> float:
    """Return 100 times the mean, 0 of nothing."""
    return sum(scores) / len(scores) * 100 if scores else 0.0


def tables(scored: Iterable[tuple[Traits, float]]) -> dict[str, dict[str, list[float]]]:
    """Return for each table [percent, count] by value of its trait."""
    scores: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in TABLES}
    for traits, score in scored:
        for name, trait in TABLES.items():
            scores[name][str(getattr(traits, trait))].append(score)
    return {
        name: {value: [percent(own), len(own)] for value, own in table.items()}
        for name, table in scores.items()
    }


def distribution(answers: Iterable[tuple[str | None, str, str]]) -> float:
    """Return how far predictions are from the references' distribution, by group; lower is better.

    answers: (group, reference, prediction); those without a group are left out.
    """
    references: dict[str, Counter[str]] = defaultdict(Counter)
    predictions: dict[str, Counter[str]] = defaultdict(Counter)
    for group, reference, prediction in answers:
        if group is not None:
            references[group][reference] += 1
            predictions[group][prediction] += 1
    total = weight = 0.0
    for group, wanted in references.items():
        given, size = predictions[group], wanted.total()
        distance = sum((given[answer] - count) ** 2 / count for answer, count in wanted.items())
        total += distance * size
        weight += size
    return total / weight / 100 if weight else 0.0
