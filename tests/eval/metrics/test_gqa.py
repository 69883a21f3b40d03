"""GQA's traits, tables and distribution."""

from __future__ import annotations

import pytest

from llava.eval.metrics.gqa import distribution, percent, prediction_of, tables, traits_of

QUESTION = {
    "question": "Is there a red bag?",
    "types": {"structural": "verify", "semantic": "obj"},
    "groups": {"global": None},
    "semantic": [
        {"operation": "select", "argument": "bag"},
        {"operation": "filter color", "argument": "red"},
        {"operation": "exist", "argument": "?"},
        {"operation": "query", "argument": "name"},
    ],
}


def test_periods_at_the_end_go_and_spaces_stay() -> None:
    assert prediction_of("Yes..") == "yes"
    assert prediction_of(" T-shirt. ") == " t-shirt. "


def test_steps_that_only_name_or_check_are_not_counted() -> None:
    traits = traits_of(QUESTION)
    assert (traits.steps, traits.words, traits.structural, traits.group) == (2, 5, "verify", None)
    with pytest.raises(KeyError):
        traits_of({"question": "?"})


def test_tables_hold_percent_and_count() -> None:
    traits = traits_of(QUESTION)
    own = tables([(traits, 1.0), (traits, 0.0), (traits, 0.0)])
    assert own["accuracyPerLength"] == {"5": [pytest.approx(100 / 3), 3]}
    assert percent([]) == 0.0


def test_the_distribution_is_chi_square_weighted_by_the_groups_size() -> None:
    # color: red 2 said 1, blue 1 said 2: (1/2 + 1/1) * 3; size: exact, 0 * 1.
    answers = [
        ("color", "red", "red"),
        ("color", "red", "blue"),
        ("color", "blue", "blue"),
        ("size", "big", "big"),
        (None, "yes", "no"),
    ]
    assert distribution(answers) == pytest.approx(1.5 * 3 / 4 / 100)
    assert distribution([(None, "yes", "no")]) == 0.0
