"""Reviews of two answers: requests and scores of the original, going on, order of the answers, drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.errors import DataError, RemoteError
from llava.eval import eval_gpt_review_bench, summarize_gpt_review
from llava.eval.judge.judge import Judge
from llava.eval.judge.options import Judging
from llava.eval.judge.replies import ReplyStore
from llava.eval.judge.review import (
    OWN_RULES,
    Kind,
    ReviewFiles,
    parse_score,
    read_pairs,
    read_reviews,
    read_rules,
    read_scores,
)
from llava.eval.judge.reviewing import review
from llava.eval.judge.summary import summarise
from llava.eval.judge.trust import beside
from llava.files import write_jsonl
from tests.eval.judge.fakes import Body, Script, in_turn, judge_of, served, write_bench

RECORDED: tuple[tuple[Kind, str, str | None, str], ...] = (
    ("bench", "wild", "context.jsonl", "gpt-4-0314"),
    ("visual", "qa90", "caps_boxes.jsonl", "gpt-4-0314"),
    ("text", "text80", None, "gpt-4"),
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pairs_of(files: dict[str, Path]) -> Any:
    answers = (files["reference"], files["model"])
    return read_pairs(ReviewFiles("bench", files["questions"], answers, files["context"]))


def report_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(beside(output, "report.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(("kind", "name", "context", "model"), RECORDED)
def test_requests_and_records_are_the_originals(
    original: Path, tmp_path: Path, kind: Kind, name: str, context: str | None, model: str
) -> None:
    folder = original / "llava_bench" / name
    names = ("answers_1", "answers_2") if kind == "text" else ("answers_gpt4", "answers_model")
    files = ReviewFiles(
        kind,
        folder / "questions.jsonl",
        tuple(folder / f"{own}.jsonl" for own in names),
        None if context is None else folder / context,
        original / "llava_bench" / "rule.json",
    )
    script = in_turn(*json.loads((folder / "judge_replies.json").read_text("utf-8")))
    judge = judge_of(script, model=model, concurrency=1, attempts=1)
    assert review(read_pairs(files), judge, tmp_path / "out.jsonl", Judging(is_compat=True)) == 0
    assert script.bodies == lines(folder / "expected_judge_calls.jsonl")
    assert lines(tmp_path / "out.jsonl") == lines(folder / "expected_reviews.jsonl")


def test_a_file_of_the_original_is_gone_on_with(original: Path, tmp_path: Path) -> None:
    folder = original / "llava_bench" / "wild"
    output = tmp_path / "out.jsonl"
    write_jsonl(output, lines(folder / "expected_reviews.jsonl")[:5])
    answers = (folder / "answers_gpt4.jsonl", folder / "answers_model.jsonl")
    files = ReviewFiles("bench", folder / "questions.jsonl", answers, folder / "context.jsonl")
    script = in_turn(*json.loads((folder / "judge_replies.json").read_text("utf-8")))
    judge = judge_of(script, model="gpt-4-0314", concurrency=1, attempts=1)
    review(read_pairs(files), judge, output, Judging(is_compat=True))
    assert lines(output) == lines(folder / "expected_reviews_resumed_after_5.jsonl")
    assert len(script.bodies) == 19


def test_our_rules_have_the_originals_words(original: Path) -> None:
    theirs = read_rules(original / "llava_bench" / "rule.json")
    assert all(theirs[name] == rule for name, rule in read_rules(OWN_RULES).items())


def test_scores_are_read_as_by_the_original(original: Path) -> None:
    for record in lines(original / "llava_bench" / "parse_score.jsonl"):
        found, wanted = parse_score(record["review"]), [float(own) for own in record["scores"]]
        assert found == wanted or [str(own) for own in found] == [str(own) for own in wanted]
        if all(0 <= own <= 10 for own in wanted):
            assert read_scores(record["review"]) == tuple(wanted)


@pytest.mark.parametrize("ignore", [[], ["1", "4"]])
def test_summaries_are_the_originals(
    original: Path, capsys: pytest.CaptureFixture[str], ignore: list[str]
) -> None:
    expected = json.loads((original / "expected.json").read_text("utf-8"))["llava_bench"]["summaries"]
    ending = "_ignore_1_4" if ignore else ""
    more = ["-i", *ignore] if ignore else []
    for name, wanted in expected.items():
        path = original / "llava_bench" / "reviews" / f"{name}.jsonl"
        if f"stdout{ending}" not in wanted or not path.exists():
            continue
        assert summarize_gpt_review.main(["-f", str(path), "--compat", *more]) == 0
        assert capsys.readouterr().out == wanted[f"stdout{ending}"]
        means = summarise(read_reviews(path), ignore=[int(own) for own in ignore], compat=True).to_dict()
        for group, figures in wanted[f"full_precision{ending}"].items():
            assert means[group]["n"] == figures["n"]
            assert means[group]["mean"] == pytest.approx(figures["mean"], abs=1e-9)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 9\nwhy", (8, 9)),
        ("8, 9", (8, 9)),
        ("\n 8.5  7", (8.5, 7)),
        ("8 11", None),
        ("-1 -1", None),
        ("nan 3", None),
        ("8/10 9/10", None),
        ("Scores: 8 9", None),
        ("8", None),
        ("", None),
    ],
)
def test_a_score_is_a_number_from_0_to_10(reply: str, scores: tuple[float, float] | None) -> None:
    assert read_scores(reply) == scores


def test_what_cannot_be_read_is_told_and_never_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_of(write_bench(tmp_path))

    def say(body: Body, _: int) -> str:
        return "I cannot say." if "Question 3?" in body["messages"][1]["content"] else "8 6"

    script = Script(say)
    output = tmp_path / "out.jsonl"
    assert review(pairs, judge_of(script), output) == 1
    assert len(script.bodies) == 5 + 3, "asked three times"
    assert read_reviews(output)[3]["tuple"] == [-1, -1]
    report = report_of(output)
    assert report["unread"] == [3]
    assert report["summary"]["all"]["mean"] == [8, 6]
    assert "1 of 6 reviews have no score that can be read" in capsys.readouterr().err
    assert summarise(read_reviews(output), compat=True).means["all"].first == pytest.approx(39 / 6)


def test_a_killed_run_goes_on_to_the_same_bytes_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    pairs = pairs_of(write_bench(tmp_path, 12))

    def scores(body: Body, _: int) -> str:
        return f"8 {len(body['messages'][1]['content']) % 7}"

    whole = tmp_path / "whole.jsonl"
    review(pairs, judge_of(Script(scores)), whole)

    output, path = tmp_path / "out.jsonl", tmp_path / "store.jsonl"

    def breaks(body: Body, number: int) -> httpx.Response | str:
        return scores(body, number) if number < 4 else httpx.Response(401, text="gone")

    first = judge_of(Script(breaks), store=ReplyStore(path), concurrency=1)
    with pytest.raises(RemoteError):
        review(pairs, first, output)
    first.close()
    # As a kill leaves it: a whole line less than the store knows, and half a line.
    kept = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(kept[:2]) + kept[2][:17])
    script = Script(scores)
    second = judge_of(script, store=ReplyStore(path), concurrency=2)
    assert review(pairs, second, output) == 0
    second.close()
    assert output.read_bytes() == whole.read_bytes()
    assert len(script.bodies) == 12 - 4


def test_a_question_without_a_reply_is_asked_again_next_time_and_takes_its_place(tmp_path: Path) -> None:
    pairs = pairs_of(write_bench(tmp_path))

    def refuses(body: Body, _: int) -> httpx.Response | str:
        is_bad = "Question 2?" in body["messages"][1]["content"]
        return httpx.Response(400, text="filtered") if is_bad else "8 6"

    output = tmp_path / "out.jsonl"
    assert review(pairs, judge_of(Script(refuses)), output) == 1
    assert report_of(output)["failed"].keys() == {"2"}
    assert [record["id"] for record in read_reviews(output)] == [1, 2, 4, 5, 6]
    script = in_turn("8 6")
    assert review(pairs, judge_of(script), output) == 0
    assert len(script.bodies) == 1
    assert [record["id"] for record in read_reviews(output)] == [1, 2, 3, 4, 5, 6]


def test_files_are_matched_by_id_and_what_is_missing_is_told(tmp_path: Path) -> None:
    files = write_bench(tmp_path)
    straight = [pair.request() for pair in pairs_of(files).pairs]
    write_jsonl(files["reference"], list(reversed(lines(files["reference"]))))
    write_jsonl(files["model"], [*lines(files["model"])[1:], {"question_id": 99, "text": "foreign"}])
    found = pairs_of(files)
    assert found.missing == [0]
    assert [pair.request() for pair in found.pairs] == straight[1:]
    assert [pair.number for pair in found.pairs] == [2, 3, 4, 5, 6]
    assert review(found, judge_of(in_turn("8 6")), tmp_path / "out.jsonl") == 1
    assert report_of(tmp_path / "out.jsonl")["missing"] == [0]


def test_reviews_of_other_answers_are_refused(tmp_path: Path) -> None:
    files = write_bench(tmp_path)
    output = tmp_path / "out.jsonl"
    review(pairs_of(files), judge_of(in_turn("8 6")), output)
    before = output.read_bytes()
    write_jsonl(files["model"], [own | {"answer_id": "other"} for own in lines(files["model"])])
    with pytest.raises(DataError, match="for other answers"):
        review(pairs_of(files), judge_of(in_turn("8 6")), output)
    assert output.read_bytes() == before


def test_answers_without_ids_are_called_by_their_question(tmp_path: Path) -> None:
    files = write_bench(tmp_path, 2)
    for name in ("reference", "model"):
        write_jsonl(
            files[name],
            [{"question_id": own["question_id"], "text": own["text"]} for own in lines(files[name])],
        )
    review(pairs_of(files), judge_of(in_turn("8 6")), tmp_path / "out.jsonl")
    assert [(own["answer1_id"], own["answer2_id"]) for own in read_reviews(tmp_path / "out.jsonl")] == [
        (0, 0),
        (1, 1),
    ]


def test_a_category_without_a_rule_and_a_picture_without_a_context_are_told(tmp_path: Path) -> None:
    files = write_bench(tmp_path)
    contexts = lines(files["context"])
    write_jsonl(files["context"], contexts[1:])
    with pytest.raises(DataError, match=r"nothing about 000\.jpg, shown with question 0"):
        pairs_of(files)
    write_jsonl(files["context"], contexts)
    rule = tmp_path / "rule.json"
    rule.write_text('{"conv": {"role": "Assistant", "prompt": "x"}}')
    answers = (files["reference"], files["model"])
    with pytest.raises(DataError, match="no rule for 'llava_bench_conv'"):
        read_pairs(ReviewFiles("bench", files["questions"], answers, files["context"], rule))


def swapped_run(tmp_path: Path, say: Any) -> dict[str, Any]:
    output = tmp_path / "out.jsonl"
    assert review(pairs_of(write_bench(tmp_path)), judge_of(Script(say)), output, Judging(swaps=True)) == 0
    found: dict[str, Any] = report_of(output)["order"]
    return found


def test_a_judge_that_prefers_whatever_stands_first_is_found_out(tmp_path: Path) -> None:
    order = swapped_run(tmp_path, lambda *_: "9 7")
    assert order["agreement"] == 0
    assert order["position_bias"]["mean"] == 2
    assert order["position_bias"]["low"] == 2
    assert order["relative"] == 100
    swapped = read_reviews(beside(tmp_path / "out.jsonl", "swapped.jsonl"))
    assert all(record["tuple"] == [7, 9] and record["is_swapped"] for record in swapped)


def test_a_judge_that_looks_at_the_answers_agrees_with_itself(tmp_path: Path) -> None:
    def fair(body: Body, _: int) -> str:
        text = body["messages"][1]["content"]
        return "8 6" if text.index("Reference") < text.index("Model") else "6 8"

    order = swapped_run(tmp_path, fair)
    assert (order["agreement"], order["position_bias"]["mean"], order["relative"]) == (1, 0, 75)


@pytest.mark.parametrize(("shift", "has_moved"), [(0, False), (1, True)])
def test_a_judge_that_drifts_is_found_out_on_what_it_said_earlier(
    tmp_path: Path, shift: int, has_moved: bool
) -> None:
    pairs = pairs_of(write_bench(tmp_path, 12))

    def says(more: int) -> Script:
        return Script(lambda body, _: f"{7 + len(body['messages'][1]['content']) % 2} {5 + more}")

    store = tmp_path / "earlier.jsonl"
    earlier = judge_of(says(0), store=ReplyStore(store))
    review(pairs, earlier, tmp_path / "earlier-reviews.jsonl")
    earlier.close()
    script = says(shift)
    output = tmp_path / "out.jsonl"
    options = Judging(anchor=store, num_anchor_items=5)
    review(pairs, judge_of(script, model="today"), output, options)
    found = report_of(output)["drift"]
    assert len(script.bodies) == 12 + 5
    assert found["has_moved"] is has_moved
    assert [own["mean"] for own in found["differences"]] == [0, shift]
    assert (found["anchor_model"], found["model"], found["num_items"]) == (["judge"], "today", 5)


def test_the_command_reviews_replays_and_keeps_to_its_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_bench(tmp_path)
    output = tmp_path / "out.jsonl"
    words = [
        "-q", str(files["questions"]), "-c", str(files["context"]),
        "-a", str(files["reference"]), str(files["model"]), "-o", str(output),
    ]  # fmt: skip
    script = in_turn("8 6")
    with served(script) as url:
        poor = ["--judge-url", url, "--price-in", "30", "--price-out", "60", "--max-cost", "0.01"]
        assert eval_gpt_review_bench.main([*words, *poor]) == 2
        assert "over --max-cost" in capsys.readouterr().err
        assert not script.bodies
        assert (
            eval_gpt_review_bench.main([*words, "--judge-url", url, "--swap", "--judge-model", "mine"]) == 0
        )
    assert len(script.bodies) == 12
    assert script.bodies[0]["model"] == "mine"
    before = output.read_bytes()
    output.unlink()
    assert eval_gpt_review_bench.main([*words, "--replay", "--swap", "--judge-model", "mine"]) == 0
    assert output.read_bytes() == before
    assert eval_gpt_review_bench.main([*words, "--replay", "--anchor", str(files["model"])]) == 2
    assert "no reply of a judge" in capsys.readouterr().err
    assert summarize_gpt_review.main(["-d", str(tmp_path), "-f", "out.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"]["all"]["printed"] == [75.0, 80.0, 60.0]


def test_without_a_judge_the_command_says_how_to_name_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    files = write_bench(tmp_path)
    words = ["-q", str(files["questions"]), "-c", str(files["context"]), "-o", str(tmp_path / "o.jsonl")]
    assert eval_gpt_review_bench.main([*words, "-a", str(files["reference"]), str(files["model"])]) == 2
    assert "--judge-url" in capsys.readouterr().err


def test_a_judge_may_be_asked_from_memory_alone() -> None:
    with pytest.raises(DataError, match="no question has both answers"):
        review(read_pairs_of_nothing(), Judge("m", None, ReplyStore(None)), Path("unused"))


def read_pairs_of_nothing() -> Any:
    from llava.eval.judge.review import Pairs

    return Pairs([], [1])
