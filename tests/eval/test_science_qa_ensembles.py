"""The original's two ways of scoring ScienceQA with GPT-4's answers beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import eval_science_qa_gpt4, eval_science_qa_gpt4_requery
from llava.files import write_json, write_jsonl
from tests.eval.test_fixtures_of_scores import RECORDED, expected


def words(base: Path, folder: Path) -> list[str]:
    given = {"--base-dir": base, "--our-result": folder / "ours.jsonl", "--gpt4-result": folder / "gpt4.json"}
    return [str(word) for pair in given.items() for word in pair]


def requery_words(folder: Path, output: Path) -> list[str]:
    return ["--requery-result", str(folder / "requery.jsonl"), "--output-result", str(output)]


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of the original are not here")
def test_lines_and_result_are_the_originals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = RECORDED / "scienceqa"
    given = words(base, base / "gpt4")
    assert eval_science_qa_gpt4.main(given) == 0
    assert capsys.readouterr().out == expected("scienceqa", "gpt4_ensemble", "stdout")
    output = tmp_path / "result.json"
    assert eval_science_qa_gpt4_requery.main([*given, *requery_words(base / "gpt4", output)]) == 0
    wanted = expected("scienceqa", "gpt4_requery")
    assert set(wanted["seed_independent_lines"]) <= set(capsys.readouterr().out.splitlines())
    assert json.loads(output.read_text()) == wanted["result"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a folder of four problems, whose right option is B."""
    problem = {"choices": ["x", "y"], "answer": 1, "image": None}
    write_json(tmp_path / "problems.json", dict.fromkeys("1234", problem))
    write_json(tmp_path / "pid_splits.json", {"test": list("1234"), "none": []})
    right, wrong = "The answer is B.", "The answer is A."
    write_jsonl(
        tmp_path / "ours.jsonl",
        [{"question_id": pid, "text": text} for pid, text in zip("123", (right, right, "B"), strict=True)],
    )
    write_json(tmp_path / "gpt4.json", {"outputs": {"1": "who knows", "2": wrong, "3": right, "4": "no"}})
    write_jsonl(
        tmp_path / "requery.jsonl", [{"question_id": "2", "text": "hm"}, {"question_id": 3, "text": wrong}]
    )
    return tmp_path


def test_what_names_no_option_is_wrong_and_never_drawn(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_science_qa_gpt4.main(words(small, small)) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "Total: 4, Correct: 2, Accuracy: 50.00%",
        "Total: 4, Correct (upper): 3, Accuracy: 75.00%",
        "Total: 4, GPT-4 NO-ANS (RANDOM): 2, Percentage: 50.00%",
    ]
    assert "1 questions have no our answer (4, ...)" in said.err


def test_a_failed_requery_leaves_our_answer(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = small / "result.json"
    assert eval_science_qa_gpt4_requery.main([*words(small, small), *requery_words(small, output)]) == 0
    assert "Total: 4, Requery-Correct: 2, Accuracy: 50.00%" in capsys.readouterr().out
    assert json.loads(output.read_text())["results"] == {"1": 1, "2": 1, "3": 0, "4": -1}


def test_a_result_of_another_form_and_an_empty_split_are_one_line(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_science_qa_gpt4.main([*words(small, small), "--split", "none"]) == 2
    write_json(small / "gpt4.json", ["B"])
    assert eval_science_qa_gpt4.main(words(small, small)) == 2
    said = capsys.readouterr().err
    assert "holds no problems" in said
    assert 'has no "outputs"' in said
    assert "Traceback" not in said
