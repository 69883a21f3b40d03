"""How far to believe a judge, from `llava eval` to the stored record and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.cli import main
from llava.files import read_json
from tests.eval.benchmarks.test_judged import bench_files, mm_vet, words_of
from tests.eval.judge.fakes import Body, Script, in_turn, served


def stored_words(folder: Path) -> tuple[list[str], Path]:
    """Put answers where a run of the model "mine" has them; return the words that score it, and the run."""
    files, answers = bench_files(folder)
    run = folder / "runs" / "mine" / "llava-bench"
    run.mkdir(parents=True)
    answers.rename(run / "answers.jsonl")
    words = [
        "llava-bench", "--questions", str(files.questions), "--annotations", str(files.annotations),
        "--context", str(files.context), "--runs", str(folder / "runs"), "--model-id", "mine",
    ]  # fmt: skip
    return ["eval", "score", *words], run


def by_place(body: Body, _: int) -> str:
    """Prefer what stands first, and the reference by a point more."""
    text = body["messages"][1]["content"]
    return "9 7" if text.index("Reference") < text.index("Model") else "8 8"


def test_both_orders_and_an_anchor_are_in_the_record_the_notes_and_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, run = stored_words(tmp_path)
    with served(Script(by_place)) as url:
        assert main([*words, "--judge-url", url, "--judge-model", "then"]) == 0
    record = read_json(run / "score.json")
    assert "trust" not in record["details"]
    earlier = tmp_path / "earlier.jsonl"
    (run / "answers-reviews.jsonl.replies.jsonl").rename(earlier)
    (run / "answers-reviews.jsonl").unlink()

    def milder(body: Body, number: int) -> str:
        return " ".join(str(int(score) + 1) for score in by_place(body, number).split())

    script = Script(milder)
    capsys.readouterr()
    with served(script) as url:
        more = ["--judge-url", url, "--judge-model", "now", "--anchor", str(earlier), "--anchor-items", "4"]
        assert main([*words, *more, "--swap"]) == 0
    assert len(script.bodies) == 6 + 6 + 4
    notes = capsys.readouterr().err
    assert "both orders prefer the same answer in 0.0 % of 6 questions" in notes
    assert "drift against then of 20" in notes
    record = read_json(run / "score.json")
    trust = record["details"]["trust"]
    assert trust["judge"] == "now"
    order = trust["order"]
    assert (order["agreement"], order["disagreeing"]) == (0, [str(number) for number in range(6)])
    assert (order["mean"], order["position_bias"]["mean"]) == ([9.5, 8.5], 1)
    assert order["relative"] == pytest.approx(100 * 8.5 / 9.5)
    assert record["figures"]["relative"] == 80, "the score stays that of the original's order"
    assert [own["mean"] for own in trust["drift"]["differences"]] == [1, 1]
    assert trust["drift"]["has_moved"] is True
    assert any(notice.startswith("drift against then") for notice in record["notices"])

    assert main(words) == 0
    assert read_json(run / "score.json")["details"]["trust"] == trust, "known when it is scored again"
    page = tmp_path / "report.html"
    assert main(["eval", "report", str(run), "-o", str(page)]) == 0
    shown = page.read_text("utf-8")
    assert "How far to believe the judge" in shown
    for cell in ("0.0 %", "89.5", "9.50 and 8.50", "+1.00 (1.00 to 1.00)", "scores are not comparable"):
        assert cell in shown, cell


def test_a_report_on_a_judge_that_was_not_looked_into_says_nothing_of_it(tmp_path: Path) -> None:
    words, run = stored_words(tmp_path)
    with served(in_turn("8 6")) as url:
        assert main([*words, "--judge-url", url]) == 0
    page = tmp_path / "report.html"
    assert main(["eval", "report", str(run), "-o", str(page)]) == 0
    assert "How far to believe" not in page.read_text("utf-8")


def test_mm_vet_has_an_anchor_and_no_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "score", *mm_vet(tmp_path), "--json"]
    with served(in_turn("0.5", "1.0")) as url:
        assert main([*words, "--judge-url", url, "--concurrency", "1"]) == 0
    assert "trust" not in json.loads(capsys.readouterr().out)["details"]
    store = tmp_path / "answers-grades.json.replies.jsonl"
    with served(in_turn("0.5", "1.0")) as url:
        more = ["--judge-url", url, "--concurrency", "1", "--anchor", str(store), "--swap"]
        assert main([*words, *more]) == 0
    captured = capsys.readouterr()
    assert "--swap has no effect" in captured.err
    found: dict[str, Any] = json.loads(captured.out)["details"]["trust"]
    assert (found["judge"], found["drift"]["num_items"]) == ("gpt-4-0613", 4)
    assert found["drift"]["has_moved"] is False
    assert "order" not in found


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_what_cannot_be_looked_into_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, answers = bench_files(tmp_path)
    words = words_of(files, answers)
    assert "--swap and --anchor have a judge asked" in refused([*words, "--swap"], capsys)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", "utf-8")
    script = in_turn("8 6")
    with served(script) as url:
        asked = [*words, "--judge-url", url]
        assert "--swap and --anchor" in refused([*asked, "--swap", "--reviews", str(answers)], capsys)
        assert "--anchor-items is 1" in refused([*asked, "--anchor-items", "1"], capsys)
        assert "has 0 replies" in refused([*asked, "--anchor", str(empty)], capsys)
    assert not script.bodies
    two = ["eval", "llava-bench", "mm-vet", "--anchor", str(empty)]
    assert "--anchor is for one benchmark" in refused(two, capsys)
