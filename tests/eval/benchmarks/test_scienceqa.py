"""ScienceQA on problems of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval.benchmark import get_benchmark
from llava.eval.benchmarks.scienceqa import read_problems
from llava.files import read_json, write_json

SCIENCEQA = get_benchmark("scienceqa")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data folder of three problems, two of them with a picture; B is right."""
    problems = {
        pid: {
            "question": f"Which  is {pid}?",
            "choices": ["x", "y"],
            "answer": 1,
            "hint": "Look." if pid == "1" else "",
            "image": None if pid == "3" else "image.png",
        }
        for pid in "123"
    }
    write_json(tmp_path / "scienceqa" / "problems.json", problems)
    write_json(tmp_path / "scienceqa" / "pid_splits.json", {"test": list("123"), "val": []})
    return tmp_path


def answers(*texts: str) -> list[dict[str, Any]]:
    prompts = ("<image>\n1?", "<image>\n2?", "3?")
    return [
        {"question_id": pid, "prompt": prompt, "text": text}
        for pid, prompt, text in zip("123", prompts, texts, strict=False)
    ]


def test_pictures_have_a_figure_of_their_own(root: Path) -> None:
    scoring = SCIENCEQA.score(SCIENCEQA.files(root), answers("B", "A. x", "The answer is B.")[::-1])
    assert scoring.headline == "img_acc"
    assert scoring.figures["acc"] == pytest.approx(200 / 3)
    assert scoring.value == 50
    assert scoring.details["parsed"] == {"1": "B", "2": "A", "3": "B"}
    assert not scoring.notices


def test_letters_beyond_the_choices_and_no_letter_are_wrong(root: Path) -> None:
    scoring = SCIENCEQA.score(SCIENCEQA.files(root), answers("C", "y", "B"))
    assert scoring.details["results"] == {"1": -1, "2": -1, "3": 1}
    assert "1 answers name no option: counted as wrong" in scoring.notices


def test_missing_foreign_and_doubled_answers_are_said(root: Path) -> None:
    given = [*answers("A")[:1], *answers("B"), {"question_id": "9", "prompt": "", "text": "B"}]
    scoring = SCIENCEQA.score(SCIENCEQA.files(root), given)
    said = " ".join(scoring.notices)
    assert (scoring.value, scoring.figures["img_total"], scoring.figures["count"]) == (100, 1, 3)
    assert "2 have no answer" in said
    assert "1 answers belong to no question (9)" in said
    assert "1 questions are answered more than once (1)" in said
    assert "1 of them have a picture" in said


def test_without_pictures_the_figure_is_0_of_0_and_said(root: Path) -> None:
    given = [{**record, "prompt": "no picture"} for record in answers("B", "B", "B")]
    scoring = SCIENCEQA.score(SCIENCEQA.files(root), given)
    assert (scoring.value, scoring.figures["acc"]) == (0, 100)
    assert "no answer is to a question with a picture: img_acc is 0 of 0" in scoring.notices


def test_the_question_file_is_made_once(root: Path) -> None:
    files = SCIENCEQA.files(root)
    questions = SCIENCEQA.questions(files)
    assert [question.image for question in questions] == ["1/image.png", "2/image.png", None]
    assert questions[0].text.startswith("Context: Look.\nWhich is 1?\nA. x\nB. y\nAnswer with")
    assert questions[2].prompt == questions[2].text
    entries = read_json(files.questions)
    assert entries[0]["conversations"][1]["value"] == "B"
    write_json(files.questions, entries[:1])
    assert len(SCIENCEQA.questions(files)) == 1


def test_what_is_not_there_is_named(root: Path) -> None:
    folder = root / "scienceqa"
    with pytest.raises(DataError, match="no split 'minival'"):
        read_problems(folder, "minival")
    write_json(folder / "pid_splits.json", {"test": ["1", "7"]})
    with pytest.raises(DataError, match="lacks 1 problems of test, the first is 7"):
        read_problems(folder)
    write_json(folder / "pid_splits.json", {"test": []})
    with pytest.raises(DataError, match="holds no problems"):
        SCIENCEQA.score(SCIENCEQA.files(root), [])
    with pytest.raises(FileError, match="does not exist"):
        SCIENCEQA.questions(SCIENCEQA.files(root / "elsewhere"))
