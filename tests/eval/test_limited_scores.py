"""`--limit` in the benchmarks whose items are called otherwise than their questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.cli import main
from llava.eval.questions import SHORT_ANSWER
from llava.files import write_json, write_jsonl, write_text


def mme(root: Path) -> list[dict[str, Any]]:
    answers = []
    for name in ("a", "b"):
        asked = (
            f"Is {name} red? Please answer yes or no.\tYes\nIs {name} blue? Please answer yes or no.\tNo\n"
        )
        write_text(root / "MME" / "MME_Benchmark_release_version" / "color" / f"{name}.txt", asked)
        answers += [
            {"question_id": f"color/{name}.jpg", "text": text, "prompt": f"Is {name} {color}?{SHORT_ANSWER}"}
            for color, text in (("red", "Yes"), ("blue", "No" if name == "a" else "Yes"))
        ]
    questions = [{**own, "image": own["question_id"], "text": own["prompt"]} for own in answers]
    write_jsonl(root / "MME" / "llava_mme.jsonl", questions)
    return answers


def textvqa(root: Path) -> list[dict[str, Any]]:
    prompts = [f"What is {own}?\nReference OCR token: x{SHORT_ANSWER}" for own in "ab"]
    data = [{"image_id": "i", "question": f"What is {own}?", "answers": ["x"] * 10} for own in "ab"]
    write_json(root / "textvqa" / "TextVQA_0.5.1_val.json", {"data": data})
    write_jsonl(
        root / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl",
        [{"question_id": "i", "image": "i.jpg", "text": prompt} for prompt in prompts],
    )
    return [
        {"question_id": "i", "prompt": prompt, "text": text}
        for prompt, text in zip(prompts, ("x", "y"), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "make", "limit", "num_items", "whole", "part"),
    [("mme", mme, 2, 2, 75 + 50, 200), ("textvqa", textvqa, 1, 1, 50, 100)],
)
def test_only_what_was_asked_counts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Any,
    limit: int,
    num_items: int,
    whole: float,
    part: float,
) -> None:
    answers = tmp_path / "answers.jsonl"
    write_jsonl(answers, make(tmp_path))
    words = ["eval", "score", name, "--data", str(tmp_path), "--answers", str(answers), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(whole)
    assert main([*words, "--limit", str(limit)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_items"], found["value"]) == (num_items, pytest.approx(part))
