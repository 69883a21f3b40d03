"""VQAv2 on annotations of our own: the metric, the upload, and a long list read piece by piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError, UsageError
from llava.eval.benchmark import Files, get_benchmark
from llava.eval.benchmarks import vqav2
from llava.files import write_json, write_jsonl, write_text

VQAV2 = get_benchmark("vqav2")


def annotation(number: int, answers: list[str]) -> dict[str, Any]:
    return {
        "question_id": number,
        "image_id": number // 2,
        "question_type": "what is",
        "answer_type": "number" if number else "other",
        "answers": [{"answer": text, "answer_id": place} for place, text in enumerate(answers)],
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return the files of three questions with annotations."""
    folder = tmp_path / "vqav2"
    write_jsonl(
        folder / "llava_vqav2_mscoco_test2015.jsonl",
        [{"question_id": number, "image": "x.jpg", "text": f"Q{number}?"} for number in range(3)],
    )
    references = [["red"] * 10, ["two"] * 5 + ["3"] * 5, ["5"] * 2 + ["6"] * 8]
    entries = [annotation(number, answers) for number, answers in enumerate(references)]
    write_json(tmp_path / "val.json", {"info": {}, "annotations": entries, "license": "x"})
    return VQAV2.files(tmp_path).over(annotations=tmp_path / "val.json")


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"question_id": number, "text": text} for number, text in enumerate(texts)]


def test_figures_are_by_type_and_over_all(files: Files) -> None:
    scoring = VQAV2.score(files, answers("Red", "Two", "5.")[::-1])
    assert [item.score for item in scoring.items] == [1.0, 1.0, pytest.approx(0.6)]
    assert scoring.value == pytest.approx(260 / 3)
    assert scoring.figures["perAnswerType/other"] == 100
    assert scoring.figures["perAnswerType/number"] == pytest.approx(80)
    assert scoring.details["perQuestionType"]["what is"] == pytest.approx(260 / 3)
    assert not scoring.notices


def test_missing_foreign_and_doubled_answers_are_said(files: Files) -> None:
    given = [*answers("blue", "two"), *answers("red"), {"question_id": "77", "text": "x"}]
    scoring = VQAV2.score(files, given)
    said = " ".join(scoring.notices)
    assert scoring.value == pytest.approx(200 / 3)
    assert "1 have no answer (2)" in said
    assert "1 answers belong to no question (77)" in said
    assert "1 questions are answered more than once (0)" in said


def test_the_upload_covers_the_split_in_its_order(files: Files, tmp_path: Path) -> None:
    target = VQAV2.export(files, answers("The Red.", "Two")[::-1], tmp_path / "up" / "m.json")
    assert json.loads(target.read_text()) == [
        {"question_id": 0, "answer": "red"},
        {"question_id": 1, "answer": "2"},
        {"question_id": 2, "answer": ""},
    ]
    with pytest.raises(DataError, match="no answer belongs to a question of the split"):
        VQAV2.export(files, [{"question_id": 9, "text": "x"}], tmp_path / "never.json")
    assert not (tmp_path / "never.json").exists()


def test_without_references_the_way_to_the_server_is_said(files: Files) -> None:
    with pytest.raises(UsageError, match=r"on the server.*llava eval export"):
        VQAV2.score(Files(files.questions, files.images), [])
    with pytest.raises(FileError, match=r"test-dev2015\.jsonl does not exist"):
        VQAV2.questions(files)


def test_a_long_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqav2, "_CHUNK", 256)
    entries = [annotation(number, ["é" * (number % 7)] * 10) for number in range(50)]
    for indent in (None, 1):
        path = tmp_path / f"{indent}.json"
        value = {"info": "x" * 300, "annotations": entries, "end": 1}
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), "utf-8")
        assert list(vqav2.stream_list(path, "annotations")) == entries


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "has no list 'annotations'"),
        ("", "has no list 'annotations'"),
        ('{"annotations": [{"question_id": 1}, {"quest', "is not JSON, or cut off"),
        ('{"annotations": [1', "is not JSON, or cut off"),
    ],
)
def test_a_broken_list_is_named(tmp_path: Path, text: str, said: str) -> None:
    write_text(tmp_path / "a.json", text)
    with pytest.raises(FileError, match=said):
        list(vqav2.stream_list(tmp_path / "a.json", "annotations"))


def test_entries_that_are_no_annotations_and_none_at_all_are_named(files: Files, tmp_path: Path) -> None:
    write_json(tmp_path / "val.json", {"annotations": [annotation(0, ["x"] * 10), {"question_id": 1}]})
    with pytest.raises(DataError, match="entry 2 is no annotation"):
        VQAV2.score(files, [])
    write_json(tmp_path / "val.json", {"annotations": []})
    with pytest.raises(DataError, match="holds no annotations"):
        VQAV2.score(files, [])
