"""ScienceQA as training data, in the original's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.files import write_json
from scripts.convert_sqa_to_llava import INPUTS, OUTPUTS, main, question_and_answer
from tests.eval.test_fixtures_of_scores import RECORDED

PROBLEM: dict[str, Any] = {
    "question": "Which  is it?",
    "choices": ["x", "y"],
    "answer": 1,
    "hint": "",
    "image": "image.png",
    "lecture": "Lec.",
    "solution": "Sol.",
}


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of the original are not here")
def test_files_are_the_originals(tmp_path: Path) -> None:
    folder = RECORDED / "scienceqa" / "convert"
    problems = json.loads((RECORDED / "scienceqa" / "problems.json").read_text("utf-8"))
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"test": json.loads((folder / "pids.json").read_text())})
    given = ["--base-dir", str(tmp_path), "--split", "test"]
    wanted = sorted(folder.glob("llava_test_*.json"))
    assert len(wanted) == 7
    for path in wanted:
        form = path.stem.removeprefix("llava_test_")
        assert main(["convert_to_llava", *given, "--prompt-format", form]) == 0
        assert json.loads((tmp_path / path.name).read_text("utf-8")) == json.loads(path.read_text("utf-8"))
    assert main(["convert_to_jsonl", *given]) == 0
    name = "scienceqa_test_QCM-LEPA.jsonl"
    assert (tmp_path / name).read_text("utf-8") == (folder / name).read_text("utf-8")


def test_parts_stand_where_the_format_says() -> None:
    asked = "Which is it?\nContext: N/A\nOptions: (A) x (B) y"
    assert question_and_answer(PROBLEM, "QCM-LEA") == (asked, "Lec. Sol. The answer is B.")
    assert question_and_answer(PROBLEM, "QCMLE-A")[0] == asked + "\nBECAUSE: Lec. Sol."
    assert question_and_answer(PROBLEM, "CQM-A")[0].startswith("Context: N/A\nQuestion: Which is it?")
    assert question_and_answer(PROBLEM, "QCM-AEL")[1] == "The answer is B. BECAUSE: Sol. Lec."
    assert question_and_answer(PROBLEM, "QCM-LEPA")[1] == "LECTURE: Lec.\nSOLUTION: Sol.\n###\nANSWER: B."


def test_lecture_and_solution_are_swapped_as_originally() -> None:
    assert question_and_answer(PROBLEM, "QCM-AL")[1].endswith("BECAUSE: Sol.")
    assert question_and_answer(PROBLEM, "QCM-AE")[1].endswith("BECAUSE: Lec.")


@pytest.mark.parametrize("asked", INPUTS)
@pytest.mark.parametrize("answered", OUTPUTS)
def test_an_empty_reason_leaves_no_title(asked: str, answered: str) -> None:
    empty = {**PROBLEM, "lecture": "", "solution": ""}
    question, answer = question_and_answer(empty, f"{asked}-{answered}")
    assert not question.endswith("BECAUSE:")
    assert "BECAUSE" not in answer
    assert answer.endswith("B.")


def test_a_wrong_format_or_split_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "problems.json", {"1": PROBLEM})
    write_json(tmp_path / "pid_splits.json", {"test": ["1"]})
    given = ["convert_to_llava", "--base-dir", str(tmp_path), "--split"]
    assert main([*given, "test", "--prompt-format", "ABC"]) == 2
    assert main([*given, "minival"]) == 2
    said = capsys.readouterr().err
    assert "Join one of QCM" in said
    assert "has no split 'minival'" in said
    assert main([*given, "test"]) == 0
    entry = json.loads((tmp_path / "llava_test_QCM-LEA.json").read_text())[0]
    assert entry["image"] == "1/image.png"
    assert entry["conversations"][0]["value"].endswith("\n<image>")
