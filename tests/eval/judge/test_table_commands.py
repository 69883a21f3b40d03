"""The two commands of the original around its tables of text questions."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from llava.eval import generate_webpage_data_from_table, qa_baseline_gpt35
from llava.eval.answers import read_answers
from llava.files import read_json, write_jsonl
from tests.eval.judge.fakes import Body, Script, served


def questions(folder: Path) -> Path:
    path = folder / "question.jsonl"
    write_jsonl(path, [{"question_id": own, "text": f"Q{own}?", "category": "generic"} for own in (2, 1, 3)])
    return path


def test_a_baseline_is_answered_in_order_and_failures_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(body: Body, _: int) -> httpx.Response | str:
        text = body["messages"][1]["content"]
        return httpx.Response(400, text="no") if text == "Q2?" else f"answer to {text}"

    script = Script(say)
    words = ["-q", str(questions(tmp_path)), "-o", str(tmp_path / "out.jsonl")]
    with served(script) as url:
        assert qa_baseline_gpt35.main([*words, "--judge-url", url]) == 1
        assert "question 2: http" in capsys.readouterr().err
        records = read_answers(tmp_path / "out.jsonl")
        assert [own["question_id"] for own in records] == [1, 3]
        assert qa_baseline_gpt35.main([*words, "--judge-url", url, "--compat"]) == 1
    records = read_answers(tmp_path / "out.jsonl")
    assert [own["text"] for own in records] == ["answer to Q1?", "#ERROR#", "answer to Q3?"]
    assert list(records[0]) == ["answer_id", "question_id", "model_id", "text"]
    assert records[0]["model_id"] == "gpt-3.5-turbo:20230327"
    assert len(script.bodies) == 3 + 1, "what was answered is not asked again"
    assert script.bodies[0] == {
        "model": "gpt-3.5-turbo",
        "messages": script.bodies[0]["messages"],
        "max_tokens": 1024,
    }
    assert [own["role"] for own in script.bodies[0]["messages"]] == ["system", "user"]


def test_the_viewers_data_is_put_together_from_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tables", str(tmp_path), "--output", str(tmp_path / "webpage" / "data.json")]
    questions(tmp_path)
    assert generate_webpage_data_from_table.main(words) == 2
    assert "answer/answer_MODEL.jsonl" in capsys.readouterr().err
    for name in ("vicuna-13b", "bard"):
        answers = [{"question_id": own, "text": f"{name} {own}"} for own in (1, 2, 3)]
        write_jsonl(tmp_path / "answer" / f"answer_{name}.jsonl", answers)
    review = {"question_id": 1, "text": "8 9\nAssistant 1 is worse than Assistant 2.", "score": [8, 9]}
    write_jsonl(tmp_path / "review" / "review_bard_vicuna-13b.jsonl", [review])
    assert generate_webpage_data_from_table.main(words) == 0
    data = read_json(tmp_path / "webpage" / "data.json")
    assert data["models"] == ["bard", "vicuna"]
    assert data["questions"][1] == {
        "id": 1,
        "category": "generic",
        "question": "Q1?",
        "answers": {"bard": "bard 1", "vicuna": "vicuna-13b 1"},
        "evaluations": {"bard": "**Assistant 1** is worse than **Assistant 2**."},
        "scores": {"bard": [8, 9]},
    }
    assert json.dumps(data["questions"][0]["scores"]) == "{}"
