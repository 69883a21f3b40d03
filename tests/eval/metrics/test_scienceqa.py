"""Which option an answer to ScienceQA names."""

from __future__ import annotations

import pytest

from llava.eval.metrics.scienceqa import FAILED, option_index, parse_letter, parse_statement


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. north", "B"),
        ("B.", FAILED),
        ("b", FAILED),
        ("The answer is C.", "C"),
        ("So: The answer is C, I think", "C"),
        ("The answer is C. The answer is D.", FAILED),
        ("The answer is C", FAILED),
        ("F", FAILED),
        ("The answer is Z.", "Z"),
        ("", FAILED),
    ],
)
def test_letters_and_statements(text: str, letter: str) -> None:
    assert parse_letter(text) == letter


def test_the_ensembles_want_a_period() -> None:
    assert parse_statement("The answer is C.") == "C"
    assert parse_statement("The answer is C,") == FAILED
    assert parse_statement("C") == FAILED


def test_a_letter_beyond_the_choices_is_no_place() -> None:
    assert option_index("B", ["x", "y"]) == 1
    assert option_index("C", ["x", "y"]) == -1
    assert option_index("Z", ["x"] * 5) == -1
    assert option_index(FAILED, ["x", "y"]) == -1
