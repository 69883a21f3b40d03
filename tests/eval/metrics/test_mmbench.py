"""Which option an answer to MMBench means."""

from __future__ import annotations

import pytest

from llava.eval.metrics.mmbench import infer_letter, infer_option

OPTIONS = {"A": "a cat", "B": "a dog", "C": "the moon"}


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) a dog", "B"),
        ("The answer is **C**", "C"),
        ("the correct answer is b of course, as one can see", "B"),
        ("A cat sits on it, and so the letter would be this", None),
        ("It is a dog", "B"),
        ("a cat or a dog", None),
        ("A or B", None),
        ("D", None),
        ("E", None),
        ("", None),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API: B", None),
        ("the moon " * 10, None),
    ],
)
def test_letters_words_refusals_and_what_cannot_be_told(answer: str, wanted: str | None) -> None:
    assert infer_option(answer, OPTIONS) == wanted


def test_a_letter_far_before_the_end_is_an_article() -> None:
    assert infer_letter("A man rides a brown horse there", OPTIONS) is None
