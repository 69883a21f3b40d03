"""Every score of the recorded original, to its last digit; skipped where the recordings are not there."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llava.eval.answers import read_answers
from llava.eval.benchmark import Files, Scoring, get_benchmark
from llava.eval.benchmarks import mme
from llava.eval.benchmarks.scienceqa import build_questions, read_problems, score_answers
from llava.eval.metrics import mmbench as letters
from llava.eval.metrics.evalai import process
from llava.eval.metrics.yes_no import mme_answer
from llava.eval.questions import SHORT_ANSWER

RECORDED = Path(__file__).parents[3] / "shared" / "fixtures" / "eval"
if not RECORDED.is_dir():
    RECORDED = Path(__file__).parents[4] / "shared" / "fixtures" / "eval"
pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of the original are not here")
CLOSE = 1e-9


def expected(*path: str) -> Any:
    value = json.loads((RECORDED / "expected.json").read_text(encoding="utf-8"))
    for name in path:
        value = value[name]
    return value


def flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, own in value.items():
        if isinstance(own, Mapping):
            result |= flat(own, f"{before}{name}/")
        else:
            result[f"{before}{name}"] = own
    return result


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(path).split("\n") if line.strip()]


def good_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text("utf-8").split("\n"):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def assert_holds(scoring: Scoring, wanted: Mapping[str, Any]) -> None:
    have = {**flat(scoring.figures), **flat(scoring.details)}
    for name, value in flat(wanted).items():
        assert have[name] == (
            pytest.approx(value, rel=CLOSE, abs=CLOSE) if isinstance(value, float | int) else value
        ), name


def test_answer_processor() -> None:
    for record in lines(RECORDED / "processor" / "evalai_processor.jsonl"):
        assert process(record["input"]) == record["output"]


def test_vizwiz(tmp_path: Path) -> None:
    folder, benchmark = RECORDED / "vizwiz", get_benchmark("vizwiz")
    files = Files(folder / "split.jsonl", folder, annotations=folder / "annotations.json")
    answers = good_lines(folder / "answers.jsonl")
    scoring = benchmark.score(files, answers)
    wanted = expected("vizwiz", "upload_scored_with_VQA_API")
    per_question = wanted.pop("per_question_in_annotation_order")
    assert_holds(scoring, wanted)
    assert [100 * item.score for item in scoring.items] == pytest.approx(per_question, rel=CLOSE, abs=CLOSE)
    upload = benchmark.export(files, answers, tmp_path / "upload.json")
    assert upload.read_bytes() == (folder / "upload_expected.json").read_bytes()


def test_textvqa() -> None:
    folder = RECORDED / "textvqa"
    files = Files(folder / "questions.jsonl", folder, annotations=folder / "annotations.json")
    scoring = get_benchmark("textvqa").score(files, read_answers(folder / "answers.jsonl"))
    wanted = expected("textvqa")
    assert_holds(scoring, {name: wanted[name] for name in ("accuracy", "samples")})
    assert scoring.details["per_line"] == wanted["per_line"]


def test_gqa(tmp_path: Path) -> None:
    folder, benchmark = RECORDED / "gqa", get_benchmark("gqa")
    files = Files(folder / "x", folder, annotations=folder / "testdev_balanced_questions.json")
    answers = read_answers(folder / "answers.jsonl")
    scoring = benchmark.score(files, answers)
    assert_holds(scoring, expected("gqa", "scores"))
    target = benchmark.export(files, answers, tmp_path / "predictions.json")
    assert target.read_bytes() == (folder / "predictions_expected.json").read_bytes()


def test_pope() -> None:
    folder = RECORDED / "pope"
    files = Files(folder / "questions.jsonl", folder, annotations=folder / "coco")
    scoring = get_benchmark("pope").score(files, read_answers(folder / "answers.jsonl"))
    assert_holds(scoring, expected("pope", "small"))


def test_pope_of_the_released_13b(tmp_path: Path) -> None:
    records = lines(RECORDED / "pope" / "full_llava15_13b.jsonl.gz")
    for split in ("adversarial", "random", "popular"):
        own = [
            {"image": r["image"], "text": r["question"].removesuffix(SHORT_ANSWER), "label": r["label"]}
            for r in records
            if r["category"] == split
        ]
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, own)))
    questions = [{**r, "text": r["question"].removesuffix(SHORT_ANSWER) + SHORT_ANSWER} for r in records]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    files = Files(tmp_path / "questions.jsonl", tmp_path, annotations=tmp_path)
    scoring = get_benchmark("pope").score(files, records)
    assert_holds(scoring, expected("pope", "full_llava15_13b"))
    assert round(scoring.value, 3) == 85.947


def mme_folder(table: Path, folder: Path) -> Path:
    for line in text_of(table).splitlines()[1:]:
        category, file, deeper, question, answer = line.rstrip("\n").split("\t")
        path = folder / category / deeper / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{question}\t{answer}\n")
    return folder


@pytest.mark.parametrize(
    ("table", "answers", "name"),
    [
        ("gt.tsv", "answers.jsonl", "small"),
        ("full_gt.tsv.gz", "full_llava15_13b.jsonl.gz", "full_llava15_13b"),
    ],
)
def test_mme(tmp_path: Path, table: str, answers: str, name: str) -> None:
    folder = mme_folder(RECORDED / "mme" / table, tmp_path / "release")
    records = lines(RECORDED / "mme" / answers)
    scoring = mme.score_lines(mme.answer_lines(mme.read_truth(folder), records))
    assert_holds(scoring, expected("mme", name))
    if name == "small":
        files = Files(tmp_path / "none", folder, annotations=folder)
        target = get_benchmark("mme").export(files, records, tmp_path / "converted")
        for wanted in (RECORDED / "mme" / "converted").glob("*.txt"):
            assert (target / wanted.name).read_bytes() == wanted.read_bytes()


def test_mme_reading_of_answers() -> None:
    for record in lines(RECORDED / "mme" / "parse_pred_ans.jsonl"):
        assert mme_answer(record["text"]) == record["official"]


def test_scienceqa() -> None:
    folder = RECORDED / "scienceqa"
    scoring = score_answers(*read_problems(folder), read_answers(folder / "answers.jsonl"))
    wanted = expected("scienceqa", "small")
    del wanted["stdout"]
    assert_holds(scoring, wanted)


def test_scienceqa_of_the_released_13b() -> None:
    records = lines(RECORDED / "scienceqa" / "full_llava15_13b.jsonl.gz")
    problems = {r["question_id"]: {"choices": [""] * r["n_choices"], "answer": r["answer"]} for r in records}
    answers = [{**r, "prompt": "<image>" if r["multimodal"] else ""} for r in records]
    wanted = expected("scienceqa", "full_llava15_13b")
    del wanted["stdout"]
    assert_holds(score_answers(list(problems), problems, answers), wanted)


def test_scienceqa_question_file() -> None:
    folder = RECORDED / "scienceqa"
    wanted = json.loads((folder / "llava_test_CQM-A_released.json").read_text(encoding="utf-8"))
    _, problems = read_problems(folder)
    assert build_questions([entry["id"] for entry in wanted], problems) == wanted


def test_mmbench(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    folder, benchmark = RECORDED / "mmbench", get_benchmark("mmbench")
    table = folder / "mmbench_dev_fixture.tsv"
    files, answers = Files(table, folder, annotations=table), read_answers(folder / "answers.jsonl")
    scoring = benchmark.score(files, answers)
    wanted = expected("mmbench", "small_circular_exact_matching")
    del wanted["report"]["split"]
    wanted["report"] = {name: value[0] for name, value in wanted["report"].items()}
    assert_holds(scoring, wanted)
    target = benchmark.export(files, answers, tmp_path / "upload.xlsx")
    have, want = (pandas.read_excel(path) for path in (target, folder / "upload_expected.xlsx"))
    pandas.testing.assert_frame_equal(have, want)


def test_mmbench_of_the_released_13b(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text(text_of(RECORDED / "mmbench" / "full_llava15_13b.tsv.gz"), "utf-8")
    pandas = pytest.importorskip("pandas")
    table = pandas.read_table(path, dtype=str)
    table["index"] = table["index"].astype(int)
    answers = [
        {"question_id": row["index"], "text": row["prediction"]}
        for row in table.fillna("").to_dict("records")
    ]
    from llava.eval.benchmarks.mmbench import score_table

    wanted = expected("mmbench", "full_llava15_13b")
    del wanted["report"]
    scoring = score_table(table, answers)
    assert_holds(scoring, wanted)
    assert round(scoring.value, 3) == 67.687


def test_mmbench_letters() -> None:
    for record in lines(RECORDED / "mmbench" / "can_infer.jsonl"):
        have = letters.infer_option(record["text"], record["choices"]) or False
        assert have == record["vlmevalkit"], record


def test_seed_bench(tmp_path: Path) -> None:
    folder, benchmark = RECORDED / "seed_bench", get_benchmark("seed")
    files = Files(folder / "x", folder, annotations=folder / "SEED-Bench.json")
    answers = read_answers(folder / "answers.jsonl")
    wanted = expected("seed_bench", "small")
    del wanted["stdout"]
    assert_holds(benchmark.score(files, answers), wanted)
    target = benchmark.export(files, answers, tmp_path / "upload.jsonl")
    assert target.read_bytes() == (folder / "upload_expected.jsonl").read_bytes()
