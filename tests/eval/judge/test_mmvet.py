"""MM-Vet's grader: requests, retries and tables of the original, and what ours does with the unreadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError, FileError
from llava.eval import eval_mmvet
from llava.eval.judge.mmvet import (
    AGAIN,
    Reference,
    grade,
    read_grade,
    read_prompt,
    read_references,
    tables,
    unread,
)
from tests.eval.judge.fakes import Body, Script, in_turn, judge_of, served

PROMPT = "Grade it.\n\nQuestion | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\n"
RUNS = [(1, 1, False), (3, 1, False), (3, 10, False), (1, 10, True)]


def recorded_judge(folder: Path, references: dict[str, Reference], predictions: dict[str, str]) -> Script:
    """Give each question's recorded replies in turn, the last one again and again."""
    replies = json.loads((folder / "judge_replies.json").read_text("utf-8"))["replies"]
    names: dict[str, list[str]] = {}
    for name, own in references.items():
        row = own.request("", predictions[name], run=0, attempt=0).messages[0]["content"]
        names.setdefault(row, []).append(name)
    assert all(len(own) == 1 for own in names.values())
    counts: dict[str, int] = {}

    def say(body: Body, _: int) -> str:
        row = "\n" + body["messages"][0]["content"].removesuffix(AGAIN).rsplit("\n\n", 1)[1]
        name = names[row][0]
        number = counts[name] = counts.get(name, -1) + 1
        return str(replies[name][min(number, len(replies[name]) - 1)])

    return Script(say)


def recorded_prompt(folder: Path) -> str:
    text = (folder / "expected_first_prompt.txt").read_text("utf-8")
    return text[: text.rindex("\n", 0, len(text) - 1)]


@pytest.mark.parametrize(("num_run", "decimals", "is_subset"), RUNS)
def test_grades_tables_and_calls_are_the_originals(
    original: Path, tmp_path: Path, num_run: int, decimals: int, is_subset: bool
) -> None:
    folder = original / "mmvet"
    everything = json.loads((original / "expected.json").read_text("utf-8"))["mmvet"]
    expected = everything[f"num_run={num_run},decimals={decimals},subset={is_subset}"]
    references = read_references(folder / "mm-vet.json", folder / "bard_set.json" if is_subset else None)
    predictions = json.loads((folder / "results_expected.json").read_text("utf-8"))
    script = recorded_judge(folder, references, predictions)
    judge = judge_of(script, model="gpt-4-0613", concurrency=1)
    prompt = recorded_prompt(folder)
    grades = grade(
        references, predictions, judge, prompt, tmp_path / "grades.json", num_run=num_run, compat=True
    )
    if "grade" in expected:
        assert grades == expected["grade"]
    assert tables(references, grades, num_run=num_run, decimals=decimals, compat=True) == expected["scores"]
    assert len(script.bodies) == expected["n_calls"]
    if (num_run, is_subset) == (1, False):
        _check_calls(folder, script.bodies)


def _check_calls(folder: Path, bodies: list[Body]) -> None:
    contents = [body["messages"][0]["content"] for body in bodies]
    assert contents[0] == (folder / "expected_first_prompt.txt").read_text("utf-8")
    calls = [
        json.loads(line)
        for line in (folder / "expected_judge_calls_run1.jsonl").read_text("utf-8").splitlines()
    ]
    for body, content, call in zip(bodies, contents, calls, strict=True):
        assert (body["temperature"], body["max_tokens"]) == (call["temperature"], call["max_tokens"])
        assert content.endswith(AGAIN) is call["retry"]
        assert content.removesuffix(AGAIN).endswith(call["prompt_tail"])
        assert len(body["messages"]) == 1


def some(num: int = 3) -> tuple[dict[str, Reference], dict[str, str]]:
    references = {
        f"v1_{number}": Reference(f"{number}.png", f"Q{number}?", "a<AND>b", ("ocr", "rec")[: 1 + number % 2])
        for number in range(num)
    }
    return references, {name: f"answer {name}" for name in references}


def test_a_request_holds_the_prompt_and_a_row_of_the_table() -> None:
    request = some()[0]["v1_0"].request(PROMPT, "c", run=0, attempt=0)
    assert request.messages[0]["content"] == PROMPT + "\nQ0? | a <AND> b | c | "


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.5 |", 0.5),
        ("1", 1),
        (".3\n", 0.3),
        ("1.5", None),
        ("-0.1", None),
        ("x", None),
        ("", None),
        ("nan", None),
    ],
)
def test_a_grade_is_a_first_word_from_0_to_1(reply: str, score: float | None) -> None:
    assert read_grade(reply) == score


def test_what_cannot_be_read_is_asked_six_times_warmer_and_warmer_and_then_not_counted(
    tmp_path: Path,
) -> None:
    references, predictions = some()

    def say(body: Body, _: int) -> str:
        return "well" if "Q1?" in body["messages"][0]["content"] else "1.0"

    script = Script(say)
    grades = grade(references, predictions, judge_of(script, concurrency=1), PROMPT, tmp_path / "g.json")
    warm = [body["temperature"] for body in script.bodies if "Q1?" in body["messages"][0]["content"]]
    assert warm == [0, 0, 0.5, 1, 1.5, 2]
    assert unread(grades) == ["v1_1"]
    assert tables(references, grades)["cap"]["total"] == 100
    assert tables(references, grades, compat=True)["cap"]["total"] == 66.7


def test_grading_goes_on_where_it_was_and_a_missing_answer_counts_0(tmp_path: Path) -> None:
    references, predictions = some()
    target = tmp_path / "grades.json"
    grade(references, {"v1_0": predictions["v1_0"]}, judge_of(in_turn("0.4")), PROMPT, target)
    script = in_turn("1.0")
    del predictions["v1_2"]
    grades = grade(references, predictions, judge_of(script), PROMPT, target)
    assert len(script.bodies) == 1
    assert [own["score"] for own in grades.values()] == [[0.4], [1.0]]
    assert tables(references, grades, decimals=3)["cap_int"] == {
        "ocr": 20, "ocr_rec": 100, "total": 46.667, "std": 0, "runs": "[46.667]",
    }  # fmt: skip


def test_the_prompt_is_read_from_the_evaluators_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mm-vet_evaluator.py"
    path.write_text(f"import os\nif True:\n    prompt = {PROMPT!r}\n", "utf-8")
    assert read_prompt(path) == PROMPT
    text = tmp_path / "prompt.txt"
    text.write_text(PROMPT, "utf-8")
    assert read_prompt(text) == PROMPT
    path.write_text("prompt = build()\n", "utf-8")
    with pytest.raises(FileError, match="assigns no text"):
        read_prompt(path)
    path.write_text("prompt = (\n", "utf-8")
    with pytest.raises(FileError, match="is not Python"):
        read_prompt(path)
    with pytest.raises(FileError, match="few-shot prompt"):
        read_prompt(tmp_path / "none.py")


def test_data_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mm-vet.json"
    path.write_text('{"v1_0": {"question": "?"}}', "utf-8")
    with pytest.raises(DataError, match="not MM-Vet's data"):
        read_references(path)
    path.write_text('{"v1_0": {"imagename": "a", "question": "?", "answer": "b", "capability": []}}', "utf-8")
    subset = tmp_path / "bard_set.json"
    subset.write_text('["v1_7"]', "utf-8")
    with pytest.raises(DataError, match="v1_7 is not in"):
        read_references(path, subset)


def test_the_command_writes_grades_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references, predictions = some()
    data: dict[str, Any] = {
        name: {
            "imagename": own.image,
            "question": own.question,
            "answer": own.answer,
            "capability": own.capabilities,
        }
        for name, own in references.items()
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(data), "utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps(predictions), "utf-8")
    words = ["--mmvet_path", str(tmp_path), "--result_file", str(tmp_path / "tiny.json"), "--num_run", "2"]
    assert eval_mmvet.main([*words, "--replay"]) == 2
    assert "mm-vet_evaluator.py" in capsys.readouterr().err
    (tmp_path / "prompt.txt").write_text(PROMPT, "utf-8")
    words += ["--prompt", str(tmp_path / "prompt.txt")]
    script = in_turn("0.5")
    with served(script) as url:
        assert eval_mmvet.main([*words, "--judge-url", url, "--json"]) == 0
    assert len(script.bodies) == 6, "each run asks anew"
    assert json.loads(capsys.readouterr().out)["cap"]["total"] == 50
    table = (tmp_path / "tiny_gpt-4-0613-cap-score-2runs.csv").read_text("utf-8")
    assert table == ',ocr,rec,total,std,runs\ntiny,50.0,50.0,50.0,0.0,"[50.0, 50.0]"\n'
    assert (tmp_path / "tiny_gpt-4-0613-grade-2runs.json").exists()
