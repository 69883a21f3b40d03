"""VizWiz on a split of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, UsageError
from llava.eval.benchmark import Files, get_benchmark
from llava.files import write_json, write_jsonl

VIZWIZ = get_benchmark("vizwiz")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return the files of two questions; annotations stand in another order."""
    files = VIZWIZ.files(tmp_path).over(annotations=tmp_path / "val.json")
    write_jsonl(
        files.questions,
        [{"question_id": number, "image": f"{number}.jpg", "text": "Q?"} for number in range(2)],
    )
    write_json(
        tmp_path / "val.json",
        [
            {
                "image": f"{number}.jpg",
                "answers": [{"answer": text} for text in [word] * 9 + ["other"]],
                "answer_type": kind,
            }
            for number, word, kind in ((1, "a dog", "other"), (0, "unanswerable", "unanswerable"))
        ],
    )
    return files


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"question_id": number, "text": text} for number, text in enumerate(texts)]


def test_answers_find_their_picture(files: Files) -> None:
    scoring = VIZWIZ.score(files, answers("Unanswerable", "the dog.")[::-1])
    assert scoring.value == 100
    assert [item.id for item in scoring.items] == [1, 0]
    half = VIZWIZ.score(files, answers("Unanswerable"))
    assert (half.value, half.figures["perAnswerType/other"]) == (50, 0)
    assert "1 have no answer (1)" in " ".join(half.notices)


def test_the_upload_is_whole_or_not_written(files: Files, tmp_path: Path) -> None:
    target = tmp_path / "up" / "m.json"
    with pytest.raises(DataError, match=r"would lack answers: 1 have no answer \(1\)"):
        VIZWIZ.export(files, answers("x"), target)
    assert not target.exists()
    VIZWIZ.export(files, [*answers("x", "A Dog."), *answers("y")], target)
    assert json.loads(target.read_text()) == [
        {"image": "0.jpg", "answer": "y"},
        {"image": "1.jpg", "answer": "dog"},
    ]


def test_what_lacks_is_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"on the server.*llava eval export"):
        VIZWIZ.score(VIZWIZ.files(tmp_path), [])
    write_json(tmp_path / "val.json", [{"image": "7.jpg", "answers": [], "answer_type": "other"}])
    with pytest.raises(DataError, match=r"entry 1 lacks '7\.jpg'"):
        VIZWIZ.score(files, [])
    write_json(tmp_path / "val.json", [])
    with pytest.raises(DataError, match="holds no annotations"):
        VIZWIZ.score(files, [])
