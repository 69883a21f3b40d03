"""TextVQA on annotations of our own: the question is found in the prompt, every line counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval.benchmark import get_benchmark
from llava.eval.benchmarks.textvqa import question_in
from llava.files import write_json

TEXTVQA = get_benchmark("textvqa")
END = "Answer the question using a single word or phrase."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data folder with two questions about one picture."""
    data = [
        {"image_id": "p", "question": "what brand is it?", "answers": ["nokia"] * 6 + ["no kia"] * 4},
        {"image_id": "p", "question": "what time?", "answers": ["10:10"] * 10},
    ]
    write_json(tmp_path / "textvqa" / "TextVQA_0.5.1_val.json", {"data": data})
    return tmp_path


def record(question: str, text: str, identity: str = "p") -> dict[str, Any]:
    return {"question_id": identity, "prompt": f"{question}\nReference OCR token: A, B\n{END}", "text": text}


def test_every_line_counts_and_what_is_missing_does_not(root: Path) -> None:
    given = [record("What brand is it?", "Nokia."), record("What brand is it?", "sony")]
    scoring = TEXTVQA.score(TEXTVQA.files(root), given)
    assert (scoring.value, scoring.figures["samples"]) == (50, 2)
    assert scoring.details["per_line"] == [1.0, 0.0]
    said = " ".join(scoring.notices)
    assert "1 questions have no answer: not counted" in said
    assert "1 questions are answered more than once" in said


def test_both_sides_are_processed(root: Path) -> None:
    scoring = TEXTVQA.score(
        TEXTVQA.files(root), [record("what time?", "10:10"), record("What brand is it?", "no kia")]
    )
    assert scoring.details["per_line"] == [pytest.approx(1.0), pytest.approx(1.0)]
    assert not scoring.notices


@pytest.mark.parametrize(
    "prompt",
    [
        f"Q?\n{END}",
        f"Q?\nReference OCR token: \n{END}",
        f"Reference OCR token: A\nQ?\n{END}",
        "OCR tokens: A, B. Question: Q? Short answer:",
    ],
)
def test_the_question_is_found_in_each_form_of_prompt(prompt: str) -> None:
    assert question_in(prompt) == "Q?"


def test_what_cannot_be_placed_is_named(root: Path) -> None:
    files = TEXTVQA.files(root)
    with pytest.raises(DataError, match="answer 1 is to no question of the annotations: p, 'who is it"):
        TEXTVQA.score(files, [record("Who is it?", "x")])
    with pytest.raises(DataError, match="no question of the annotations: other"):
        TEXTVQA.score(files, [record("What time?", "x", "other")])
    with pytest.raises(DataError, match="no question can be found in the prompt"):
        TEXTVQA.score(files, [{"question_id": "p", "text": "x"}])
    with pytest.raises(DataError, match="no answers to score"):
        TEXTVQA.score(files, [])
    with pytest.raises(FileError, match="does not exist"):
        TEXTVQA.questions(files)
