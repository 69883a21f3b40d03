"""`--compat`: the original's figures where ours mends what they depend on, against its recordings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import llava
from llava.cli import main
from llava.engine.engine import ChatEngine
from llava.engine.request import Request, SamplingParams
from llava.errors import DataError
from llava.eval import eval_pope, steps
from llava.eval.answering import Answerer, Asking, answer_blocks
from llava.eval.answers import read_answers
from llava.eval.benchmark import BENCHMARKS, Files, get_benchmark
from llava.eval.benchmarks import mme
from llava.eval.comparing import what_differs
from llava.eval.questions import SHORT_ANSWER, Question
from llava.eval.runs import read_runs
from llava.files import read_json, write_json, write_jsonl, write_text
from tests.eval.fakes import EchoAnswerer
from tests.eval.test_fixtures_of_scores import assert_holds, lines, mme_folder

POPE, MME = get_benchmark("pope"), get_benchmark("mme")
LABELS = ("yes", "no", "no", "yes")


def recorded(folder: Path, *names: str) -> Any:
    value = read_json(folder / "expected.json")
    for name in names:
        value = value[name]
    return value


def pope_files(folder: Path) -> Files:
    """Write one split of POPE and return its files."""
    labels: list[dict[str, Any]] = [
        {"question_id": n, "image": f"{n}.jpg", "text": "Is it?", "label": own}
        for n, own in enumerate(LABELS)
    ]
    write_jsonl(folder / "pope" / "coco" / "coco_pope_random.json", labels)
    questions = [{**own, "text": own["text"] + SHORT_ANSWER, "category": "random"} for own in labels]
    write_jsonl(folder / "pope" / "llava_pope_test.jsonl", questions)
    return POPE.files(folder)


def test_pope_is_matched_by_place(tmp_path: Path) -> None:
    files = pope_files(tmp_path)
    given = [{"question_id": number, "text": label} for number, label in enumerate(LABELS)]
    assert POPE.score_as_original(files, given).figures == POPE.score(files, given).figures
    assert POPE.score(files, given[1:]).figures["random/accuracy"] == 0.75
    scoring = POPE.score_as_original(files, given[1:])
    # no, no, yes against yes, no, no
    assert {scoring.figures[f"random/{name}"] for name in ("TP", "FP", "TN", "FN")} == {0, 1}
    assert scoring.figures["random/samples"] == 3
    assert "3 answers to 4 labels" in scoring.notices[0]
    with pytest.raises(DataError, match="5 answers and 4 labels"):
        POPE.score_as_original(files, [*given, given[0]])
    with pytest.raises(DataError, match="belongs to no question"):
        POPE.score_as_original(files, [{"question_id": 9, "text": "no"}])
    with pytest.raises(DataError, match="no answers"):
        POPE.score_as_original(files, [])


def test_pope_has_the_recorded_figures_with_and_without_an_answer(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = original / "pope"
    files = Files(folder / "questions.jsonl", folder, annotations=folder / "coco")
    for answers, name in (("answers", "small"), ("answers_missing_one", "small_missing_one_answer")):
        scoring = POPE.score_as_original(files, read_answers(folder / f"{answers}.jsonl"))
        assert_holds(scoring, recorded(original, "pope", name))
    words = ["--annotation-dir", str(folder / "coco"), "--question-file", str(files.questions)]
    words += ["--result-file", str(folder / "answers_missing_one.jsonl")]
    assert eval_pope.main([*words, "--compat"]) == 0
    assert "Category: adversarial, # samples: 99\nTP\tFP\tTN\tFN\t\n12\t32\t17\t38" in capsys.readouterr().out


def line_of(file: str, question: str, said: str) -> mme.Line:
    return mme.Line("color", f"{file}.txt", question, "Yes", said)


def test_mme_takes_lines_that_follow_each_other_for_a_pair() -> None:
    given = [
        line_of("a", "1", "yes"),
        line_of("b", "1", "yes"),
        line_of("a", "2", "no"),
        line_of("b", "2", "no"),
    ]
    assert mme.score_lines(given).figures["Perception/tasks/color"] == 50
    assert mme.score_lines_in_order(given).figures["Perception/tasks/color"] == 50 + 50
    with pytest.raises(DataError, match="color has 3 answers, which make no pairs"):
        mme.score_lines_in_order(given[:3])
    with pytest.raises(DataError, match="no answers"):
        mme.score_lines_in_order([])


def test_mme_counts_no_question_without_an_answer(tmp_path: Path) -> None:
    release = tmp_path / "MME" / "MME_Benchmark_release_version"
    for name in ("a", "b"):
        asked = (
            f"Is {name} red? Please answer yes or no.\tYes\nIs {name} blue? Please answer yes or no.\tNo\n"
        )
        write_text(release / "color" / f"{name}.txt", asked)
    answers = [
        {"question_id": "color/a.jpg", "prompt": f"Is a {color}?{SHORT_ANSWER}", "text": text}
        for color, text in (("red", "Yes"), ("blue", "No"))
    ]
    files = MME.files(tmp_path)
    assert MME.score(files, answers).value == 100
    scoring = MME.score_as_original(files, answers)
    assert scoring.value == 200
    assert scoring.notices == ["2 questions have no answer: not counted, as by the original"]


@pytest.mark.parametrize(
    ("table", "answers", "name"),
    [
        ("gt.tsv", "answers.jsonl", "small"),
        ("full_gt.tsv.gz", "full_llava15_13b.jsonl.gz", "full_llava15_13b"),
    ],
)
def test_mme_has_the_recorded_figures(
    original: Path, tmp_path: Path, table: str, answers: str, name: str
) -> None:
    folder = mme_folder(original / "mme" / table, tmp_path / "release")
    files = Files(tmp_path / "none", folder, annotations=folder)
    scoring = MME.score_as_original(files, lines(original / "mme" / answers))
    assert_holds(scoring, recorded(original, "mme", name))


def test_every_recorded_review_gives_the_recorded_summary(original: Path, tmp_path: Path) -> None:
    bench = get_benchmark("llava-bench")
    for path in sorted((original / "llava_bench" / "reviews").glob("*.jsonl")):
        ids = dict.fromkeys(json.loads(line)["question_id"] for line in path.read_text("utf-8").splitlines())
        questions = tmp_path / "questions.jsonl"
        write_jsonl(questions, [{"question_id": own, "image": f"{own}.jpg", "text": "?"} for own in ids])
        scoring = bench.score_as_original(Files(questions, tmp_path, reviews=path), [])
        wanted = recorded(original, "llava_bench", "summaries", path.stem)
        printed = [line for line in wanted["stdout"].splitlines() if line.startswith(("all ", "llava_bench"))]
        assert printed
        assert [line for line in scoring.details["printed"] if line in printed] == printed
        all_of_it = next(line for line in scoring.details["printed"] if line.startswith("all "))
        assert round(scoring.value, 1) == float(all_of_it.split()[1])


def test_unread_reviews_are_averaged_as_minus_1(tmp_path: Path) -> None:
    bench = get_benchmark("llava-bench")
    questions, reviews = tmp_path / "questions.jsonl", tmp_path / "reviews.jsonl"
    write_jsonl(questions, [{"question_id": own, "image": "1.jpg", "text": "?"} for own in (1, 2)])
    write_jsonl(reviews, [{"question_id": 1, "tuple": [8, 6]}, {"question_id": 2, "tuple": [-1, -1]}])
    files = Files(questions, tmp_path, reviews=reviews)
    assert bench.score(files, []).figures["relative"] == 75
    scoring = bench.score_as_original(files, [])
    assert scoring.figures["relative"] == pytest.approx(100 * 2.5 / 3.5)
    assert [item.score for item in scoring.items] == [0.6, 0]


def test_mm_vet_has_the_recorded_tables(original: Path, tmp_path: Path) -> None:
    wanted = recorded(original, "mmvet", "num_run=1,decimals=1,subset=False")
    grades = tmp_path / "grades.json"
    write_json(grades, wanted["grade"])
    files = Files(tmp_path, tmp_path, original / "mmvet" / "mm-vet.json", reviews=grades)
    scoring = get_benchmark("mm-vet").score_as_original(files, [])
    assert scoring.details == wanted["scores"]
    assert round(scoring.value, 1) == wanted["scores"]["cap"]["total"]
    assert not any("not counted" in notice for notice in scoring.notices)


def test_the_other_benchmarks_score_as_they_do() -> None:
    mended = {"pope", "mme", "llava-bench", "mm-vet"}
    plain = "Benchmark.score_as_original"
    found = {
        name
        for name in BENCHMARKS
        if get_benchmark(name).score_as_original.__func__.__qualname__ != plain  # type: ignore[attr-defined]
    }
    assert found == mended


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"image_aspect_ratio": None, "compat": False, **given})


def test_only_the_three_that_the_original_crops_are_cropped() -> None:
    cropped = {"scienceqa", "llava-bench", "mm-vet"}
    for name in BENCHMARKS:
        benchmark = get_benchmark(name)
        assert steps.aspect_of(options(), benchmark) is None
        assert steps.aspect_of(options(compat=True), benchmark) == ("square" if name in cropped else None)
        assert steps.aspect_of(options(compat=True, image_aspect_ratio="pad"), benchmark) == "pad"


def test_the_command_loads_a_model_for_each_picture_rule_and_stores_that_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pope_files(tmp_path)
    problem = {"question": "Q?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None}
    write_json(tmp_path / "scienceqa" / "problems.json", {"1": problem})
    write_json(tmp_path / "scienceqa" / "pid_splits.json", {"test": ["1"]})
    for number in range(4):
        path = tmp_path / "pope" / "val2014" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    opened: list[str | None] = []

    def open_model(_: argparse.Namespace, aspect: str | None) -> Answerer:
        opened.append(aspect)
        return EchoAnswerer(image={"aspect": aspect})

    monkeypatch.setattr(steps, "open_model", open_model)
    words = ["eval", "scienceqa", "pope", "--data", str(tmp_path), "--model", "mine"]
    assert main([*words, "--runs", str(tmp_path / "plain")]) == 0
    assert opened == [None]
    assert "--compat" not in capsys.readouterr().out
    opened.clear()
    assert main([*words, "--runs", str(tmp_path / "compat"), "--compat"]) == 0
    assert opened == ["square", None]
    assert capsys.readouterr().out.count("scored as the original scores (--compat)") == 2
    before, after = (read_runs([tmp_path / name / "mine" / "pope"])[0] for name in ("plain", "compat"))
    assert (before.is_compat, after.is_compat) == (False, True)
    assert after.record["settings"]["decoding"] == "original"
    assert {"compat (False, True)", "decoding (None, original)"} <= set(what_differs(before, after))
    assert after.scoring().figures == after.record["figures"]


class Watched:
    """The pictures that an engine is given."""

    def __init__(self, engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[Any] = []
        plainly = engine.generate

        def generate(requests: Sequence[Request], **more: Any) -> Any:
            self.images += [image for request in requests for image in request.images]
            return plainly(requests, **more)

        monkeypatch.setattr(engine, "generate", generate)


def test_pictures_are_decoded_as_by_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(tmp_path / "turned.png", exif=exif)
    engine = llava.load(engine="torch")
    assert isinstance(engine, ChatEngine)
    watched = Watched(engine, monkeypatch)
    sampling = SamplingParams(temperature=0, max_new_tokens=1)
    questions = [[Question(1, "What is it?", "turned.png")]]
    try:
        for is_plain in (False, True):
            asking = Asking(tmp_path, sampling, plain_pictures=is_plain)
            answer_blocks(engine, questions, asking, lambda *_: None)
    finally:
        engine.close()
    assert [image.size for image in watched.images] == [(4, 8), (8, 4)]
    assert watched.images[1].getexif().get(0x0112) is None, "nor will anyone after turn it"
