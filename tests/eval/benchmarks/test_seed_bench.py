"""SEED-Bench on questions of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval.benchmark import Files, get_benchmark
from llava.files import write_json

SEED = get_benchmark("seed")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return the files of two questions about pictures and one about a video; B is right."""
    questions = [
        {
            "question_id": identity,
            "question": "Which?",
            "answer": "B",
            "data_type": kind,
            "data_id": identity,
            "question_type_id": number,
        }
        for identity, kind, number in (("1", "image", 1), ("2", "image", 5), ("v3", "video", 10))
    ]
    types = {"Scene Understanding": 1, "Instance Counting": 5, "Action Recognition": 10}
    files = SEED.files(tmp_path)
    assert files.annotations is not None
    write_json(files.annotations, {"questions": questions, "question_type": types})
    return files


def answers(*texts: str) -> list[dict[str, Any]]:
    return [
        {"question_id": identity, "text": text} for identity, text in zip((1, 2, "v3"), texts, strict=False)
    ]


def test_the_letter_alone_is_right(files: Files) -> None:
    scoring = SEED.score(files, answers("B", "B.", "b"))
    assert scoring.value == pytest.approx(100 / 3)
    assert (scoring.figures["image"], scoring.figures["video"]) == (50, 0)
    assert scoring.details["counts"] == {"1": [1, 1], "5": [0, 1], "10": [0, 1]}
    assert not scoring.notices


def test_missing_foreign_and_doubled_answers_are_said(files: Files) -> None:
    given = [*answers("A", "B"), *answers("B"), {"question_id": 9, "text": "B"}]
    scoring = SEED.score(files, given)
    said = " ".join(scoring.notices)
    assert scoring.value == pytest.approx(200 / 3)
    assert "1 have no answer (v3)" in said
    assert "1 answers belong to no question (9)" in said
    assert "1 questions are answered more than once (1)" in said


def test_the_upload_is_whole_and_in_order_or_not_written(files: Files, tmp_path: Path) -> None:
    target = tmp_path / "up" / "m.jsonl"
    with pytest.raises(DataError, match=r"would lack questions: 1 have no answer \(v3\)"):
        SEED.export(files, answers("A", "B"), target)
    assert not target.exists()
    SEED.export(files, answers("A", "B", "C\tno")[::-1], target)
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"question_id": "1", "prediction": "A"},
        {"question_id": "2", "prediction": "B"},
        {"question_id": "v3", "prediction": "C\tno"},
    ]


def test_what_lacks_is_named(files: Files, tmp_path: Path) -> None:
    assert files.annotations is not None
    write_json(files.annotations, {"questions": []})
    with pytest.raises(DataError, match="is not SEED-Bench"):
        SEED.score(files, [])
    with pytest.raises(FileError, match="does not exist"):
        SEED.score(SEED.files(tmp_path / "elsewhere"), [])
