"""The two benchmarks that a judge scores, from `llava eval` on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.cli import main
from llava.errors import DataError, UsageError
from llava.eval.answers import read_answers
from llava.eval.benchmark import Files, get_benchmark
from llava.files import read_json, write_json, write_jsonl
from tests.eval.judge.fakes import in_turn, served, write_bench


def bench_files(folder: Path) -> tuple[Files, Path]:
    found = write_bench(folder)
    return Files(found["questions"], folder, found["reference"], found["context"]), found["model"]


def words_of(files: Files, answers: Path) -> list[str]:
    return [
        "eval", "score", "llava-bench", "--questions", str(files.questions), "--annotations",
        str(files.annotations), "--context", str(files.context), "--answers", str(answers), "--json",
    ]  # fmt: skip


def test_released_reviews_give_their_published_figures(original: Path, tmp_path: Path) -> None:
    reviews = original / "llava_bench" / "reviews" / "llava-v1.5-13b-eval1.jsonl"
    ids = [json.loads(line)["question_id"] for line in reviews.read_text("utf-8").splitlines()]
    questions = tmp_path / "questions.jsonl"
    write_jsonl(questions, [{"question_id": own, "image": f"{own // 3}.jpg", "text": "?"} for own in ids])
    scoring = get_benchmark("llava-bench").score(Files(questions, tmp_path, reviews=reviews), [])
    assert scoring.headline == "relative"
    assert round(scoring.value, 1) == 72.8
    assert scoring.details["printed"][0] == "all 72.8 86.5 63.0"
    assert round(scoring.figures["llava_bench_detail/relative"], 1) == 52.6
    assert not scoring.notices


def test_llava_bench_is_judged_and_scored_and_scored_again_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, answers = bench_files(tmp_path)
    words = words_of(files, answers)
    assert main(words) == 2
    assert "--judge-url" in capsys.readouterr().err
    script = in_turn("8 6", "8 6", "no")
    with served(script) as url:
        assert main([*words, "--judge-url", url, "--judge-model", "mine", "--concurrency", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["value"] == 75
    asked = len(script.bodies)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert len(script.bodies) == asked
    moved = tmp_path / "elsewhere.jsonl"
    (tmp_path / "model-reviews.jsonl").rename(moved)
    assert main([*words, "--reviews", str(moved)]) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_reviews_of_other_answers_or_questions_are_refused(tmp_path: Path) -> None:
    files, answers = bench_files(tmp_path)
    benchmark = get_benchmark("llava-bench")
    reviews = tmp_path / "reviews.jsonl"
    own: dict[str, Any] = {"question_id": 1, "answer2_id": "other", "category": "c", "tuple": [8, 6]}
    write_jsonl(reviews, [own])
    with pytest.raises(DataError, match="is of answer other, not of m1"):
        benchmark.score(files.over(reviews=reviews), read_answers(answers))
    write_jsonl(reviews, [own | {"question_id": 77}])
    with pytest.raises(DataError, match="question 77 is not one of"):
        benchmark.score(files.over(reviews=reviews), [])
    write_jsonl(reviews, [own | {"tuple": [-1, -1]}])
    with pytest.raises(DataError, match="has no scores"):
        benchmark.score(files.over(reviews=reviews), [])
    with pytest.raises(UsageError, match="a judge gives the score"):
        benchmark.score(files, [])


def mm_vet(folder: Path) -> list[str]:
    """Write a small MM-Vet with answers, and return the words that score it."""
    root = folder / "data" / "mm-vet"
    root.mkdir(parents=True)
    numbers = range(4)
    write_jsonl(
        root / "llava-mm-vet.jsonl",
        [{"question_id": own, "image": f"v1_{own}.png", "text": f"Q{own}?"} for own in numbers],
    )
    references = {
        f"v1_{own}": {
            "imagename": f"v1_{own}.png", "question": f"Q{own}?", "answer": "a",
            "capability": ["ocr", "rec"][: 1 + own % 2],
        }
        for own in numbers
    }  # fmt: skip
    write_json(root / "mm-vet.json", references)
    (root / "mm-vet_evaluator.py").write_text("prompt = 'Grade.\\n'\n", "utf-8")
    answers = folder / "answers.jsonl"
    write_jsonl(answers, [{"question_id": own, "text": "a"} for own in numbers])
    return ["mm-vet", "--data", str(folder / "data"), "--answers", str(answers)]


def test_mm_vet_is_graded_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = mm_vet(tmp_path)
    with served(in_turn("0.5", "1.0")) as url:
        code = main(["eval", "score", *words, "--json", "--judge-url", url, "--concurrency", "1"])
    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["figures"] == {"total": 75, "ocr": 75, "rec": 100}
    assert record["details"]["cap_int"]["ocr_rec"] == 100
    assert main(["eval", "score", *words, "--json", "--limit", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["num_items"] == 2
    grades = read_json(tmp_path / "answers-grades.json")
    grades["v1_0"]["content"] = ["well"]
    del grades["v1_3"]
    write_json(tmp_path / "answers-grades.json", grades)
    assert main(["eval", "score", *words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["num_items"] == 3
    assert [notice.split(" (")[0] for notice in record["notices"]] == [
        "1 of 4 grades have no score that can be read: not counted",
        "1 questions have no grade",
    ]


def test_mm_vet_exports_what_its_evaluator_reads(tmp_path: Path) -> None:
    words = mm_vet(tmp_path)
    assert main(["eval", "export", *words, "-o", str(tmp_path / "out.json")]) == 0
    assert read_json(tmp_path / "out.json") == {f"v1_{number}": "a" for number in range(4)}
