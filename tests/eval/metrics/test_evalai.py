"""The answer processor against the recorded original, whole and by its parts, with its slips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.metrics.evalai import normalise, plain_words, process, strip_marks

RECORDED = Path(__file__).parents[2] / "fixtures" / "eval" / "processor" / "evalai_processor.jsonl"
RECORDS = [json.loads(line) for line in RECORDED.read_text("utf-8").split("\n") if line]


def test_the_recorded_original_is_met() -> None:
    assert len(RECORDS) == 66
    for record in RECORDS:
        assert process(record["input"]) == record["output"], record
        assert strip_marks(record["input"]) == record["process_punctuation"], record
        assert plain_words(record["input"]) == record["process_digit_article"], record


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Two dogs.", "2 dogs"),
        ("it's", "it 's"),
        ("dont", "don't"),
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("somebody'd", "somebodyd"),
        ("", ""),
        ("\n\t", ""),
    ],
)
def test_words_marks_and_numbers(text: str, wanted: str) -> None:
    assert process(text) == wanted


def test_only_the_first_32_periods_go() -> None:
    assert process("a." * 40) == "a" * 32 + "a." * 8


def test_a_comma_in_a_number_takes_every_mark_away_where_commas_are_left() -> None:
    assert normalise("1,000 a-b") == "1000 ab"
    assert process("1,000 a-b") == "1000 b"
