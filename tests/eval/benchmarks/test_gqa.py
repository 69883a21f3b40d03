"""GQA on questions of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval.benchmark import Files, get_benchmark
from llava.files import write_json

GQA = get_benchmark("gqa")


def question(answer: str, structural: str, *, is_balanced: bool = True) -> dict[str, Any]:
    return {
        "question": "Is it red?",
        "answer": answer,
        "imageId": "n1",
        "isBalanced": is_balanced,
        "types": {"structural": structural, "semantic": "attr"},
        "groups": {"global": None},
        "semantic": [{"operation": "select", "argument": "it"}],
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return the files of three balanced questions and one that is not."""
    own = {
        "1": question("yes", "verify"),
        "2": question("t-shirt", "query"),
        "3": question("no", "choose"),
        "4": question("yes", "verify", is_balanced=False),
    }
    files = GQA.files(tmp_path)
    assert files.annotations is not None
    write_json(files.annotations, own)
    return files


def answers(**texts: str) -> list[dict[str, Any]]:
    return [{"question_id": name.removeprefix("q"), "text": text} for name, text in texts.items()]


def test_answers_are_compared_exactly_after_periods_and_case(files: Files) -> None:
    scoring = GQA.score(files, answers(q3="No..", q2="tshirt", q1="Yes", q4="no"))
    assert scoring.value == pytest.approx(200 / 3)
    assert (scoring.figures["binary"], scoring.figures["open"]) == (100, 0)
    assert scoring.details["accuracyPerStructuralType"]["query"] == [0.0, 1]
    assert not scoring.notices
    assert GQA.score(files, answers(q1=" yes", q2="x", q3="x")).value == 0


def test_missing_foreign_and_doubled_answers_are_said(files: Files) -> None:
    scoring = GQA.score(files, [*answers(q1="no", q2="t-shirt", q9="x"), *answers(q1="yes")])
    said = " ".join(scoring.notices)
    assert scoring.value == pytest.approx(200 / 3)
    assert "1 have no answer (3)" in said
    assert "1 answers belong to no question (9)" in said
    assert "1 questions are answered more than once (1)" in said


def test_the_official_file_has_every_line_in_order(files: Files, tmp_path: Path) -> None:
    target = GQA.export(files, [*answers(q2="A cat.", q1=" Yes"), *answers(q2="dog")], tmp_path / "p.json")
    assert json.loads(target.read_text()) == [
        {"questionId": "2", "prediction": "a cat"},
        {"questionId": "1", "prediction": " yes"},
        {"questionId": "2", "prediction": "dog"},
    ]


def test_annotations_without_balanced_questions_and_none_are_named(files: Files, tmp_path: Path) -> None:
    assert files.annotations is not None
    write_json(files.annotations, {"4": question("yes", "verify", is_balanced=False)})
    with pytest.raises(DataError, match="no question of the annotations is balanced"):
        GQA.score(files, [])
    with pytest.raises(FileError, match=r"does not exist.*GQA 1\.2"):
        GQA.score(GQA.files(tmp_path / "elsewhere"), [])
