"""The VQA metric: agreement with ten people, and its exception where all ten agree."""

from __future__ import annotations

import pytest

from llava.eval.metrics.vqa import soft_accuracy, vqa_score


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_the_score_grows_with_those_who_agree(matches: int, score: float) -> None:
    references = ["red"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert soft_accuracy("red", references) == pytest.approx(score)


def test_no_references_are_no_score() -> None:
    assert soft_accuracy("red", []) == 0.0


def test_answers_are_normalised_only_where_people_differ() -> None:
    assert vqa_score("The Red.", ["red"] * 10) == 0.0
    assert vqa_score("red\n", ["red "] * 10) == 1.0
    assert vqa_score("The Red.", ["a red"] * 9 + ["blue"]) == 1.0
