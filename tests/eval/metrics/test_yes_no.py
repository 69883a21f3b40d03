"""How POPE and MME read yes and no."""

from __future__ import annotations

import pytest

from llava.eval.metrics.yes_no import Confusion, mme_answer, pope_answer


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("No", "no"),
        ("no, there is none", "no"),
        ("It is not. Yes", "no"),
        ("NO", "yes"),
        ("no?", "yes"),
        ("", "yes"),
        ("Yes. No", "yes"),
        ("nothing", "yes"),
    ],
)
def test_pope_takes_what_does_not_deny_for_yes(text: str, wanted: str) -> None:
    assert pope_answer(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("YES", "yes"), (" yes", "yes"), ("  yes", "other"), ("nope", "no"), ("I know", "other"), ("", "other")],
)
def test_mme_reads_four_characters(text: str, wanted: str) -> None:
    assert mme_answer(text) == wanted


def test_nothing_is_divided_by_zero() -> None:
    none = Confusion.count([])
    assert (none.accuracy, none.precision, none.recall, none.f1, none.yes_ratio) == (0, 0, 0, 0, 0)
    denied = Confusion.count([("no", "yes"), ("other", "no")])
    assert (denied.fn, denied.samples, denied.f1) == (1, 1, 0)
