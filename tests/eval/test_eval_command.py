"""`llava eval` from its command line: the whole way on the embedded model's benchmark and on one's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from llava.cli import main
from llava.errors import ConfigError
from llava.eval.benchmarks.custom import MATCHES, read_benchmark
from llava.eval.options import add_answering_arguments, devices_of, model_id_of, model_options_of
from llava.eval.runs import read_runs

ASKED = ("--engine", "torch", "--limit", "60")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the tiny benchmark was run twice: greedy, and with other pictures."""
    place = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["eval", "tiny", *ASKED]) == 0
        other = ("--model-id", "other", "--image-aspect-ratio", "square", "--max-new-tokens", "3")
        assert main(["eval", "tiny", *ASKED, *other]) == 0
    return place


@pytest.fixture
def workplace(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(evaluated)
    return evaluated


RUN = Path("runs/eval/InternVL-Chat-Tiny/tiny-first-60")
OTHER = Path("runs/eval/other/tiny-first-60")


@pytest.mark.usefixtures("workplace")
def test_a_benchmark_is_answered_scored_and_shown_beside_the_published_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["eval", "tiny", *ASKED]) == 0
    captured = capsys.readouterr()
    assert "60 answered before" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].split("  ")[0] == "benchmark"
    assert lines[1].startswith("Held-out scenes")
    assert "98.7 (InternVL-Chat-Tiny)" in lines[1]
    record = json.loads((RUN / "score.json").read_text())
    assert record["figures"]["mean"] > 90
    assert record["intervals"]["mean"]["low"] <= record["figures"]["mean"]
    assert record["settings"]["prompts_sha256"]
    assert len((RUN / "answers.jsonl").read_text().splitlines()) == 60


@pytest.mark.usefixtures("workplace")
def test_a_score_by_itself_prints_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    answers = str(RUN / "answers.jsonl")
    assert main(["eval", "score", "tiny", "--answers", answers, "--limit", "60", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"] == json.loads((RUN / "score.json").read_text())["figures"]
    assert printed["num_items"] == 60
    assert main(["eval", "score", "tiny", "--answers", answers, "--limit", "60"]) == 0
    assert "presence" in capsys.readouterr().out


@pytest.mark.usefixtures("workplace")
def test_answers_that_are_missing_are_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (RUN / "answers.jsonl").read_text().splitlines()
    foreign = lines[4].replace('"question_id": 4', '"question_id": "x"')
    Path("shuffled.jsonl").write_text("\n".join([*reversed(lines[:30]), lines[3], foreign]))
    assert main(["eval", "score", "tiny", "--answers", "shuffled.jsonl", "--json"]) == 0
    notices = " ".join(json.loads(capsys.readouterr().out)["notices"])
    assert "have no answer" in notices
    assert "1 answers belong to no question (x)" in notices
    assert "1 questions are answered more than once (3)" in notices


@pytest.mark.usefixtures("workplace")
def test_two_runs_are_compared_and_what_differs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "compare", str(RUN), str(OTHER)]) == 0
    printed = capsys.readouterr().out
    assert "worse" in printed
    assert "differs: image.aspect (pad, square)" in printed
    assert "differs: sampling.max_new_tokens (96, 3)" in printed
    assert main(["eval", "compare", str(RUN), str(RUN), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["difference"], result["differs"]) == (0, [])
    assert main(["eval", "compare", str(RUN.parent), str(OTHER.parent)]) == 0
    assert capsys.readouterr().out == printed
    assert main(["eval", "compare", str(RUN), str(OTHER), str(RUN)]) == 0
    assert "3 runs, mean" in capsys.readouterr().out


@pytest.mark.usefixtures("workplace")
def test_a_report_is_one_file_with_everything_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (OTHER / "items.jsonl").read_text().splitlines()
    item = json.loads(lines[0]) | {"prediction": "<script>alert(1)</script>", "score": 0.0}
    (OTHER / "items.jsonl").write_text("\n".join([json.dumps(item), *lines[1:]]))
    assert main(["eval", "report", str(RUN), str(OTHER), "-o", "report.html"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = Path("report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("data:image/jpeg;base64,") >= 12
    assert "http://" not in page.replace("http-equiv", "")
    for word in (
        "By category",
        "Compared on the same questions",
        "Wrong",
        "Right",
        "image.aspect",
        "fingerprint",
    ):
        assert word in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonesuch"], "Did you mean"),
        (["compare", "runs"], "compare needs two runs"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["score"], "llava eval score needs a benchmark"),
        (["export", "tiny"], "needs a file to write"),
        (["export", "tiny", "--answers", str(RUN / "answers.jsonl"), "-o", "x"], "takes no submission file"),
        (["tiny", "--gpus", "a"], "--gpus is 'a'"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words == ["nonesuch"]:
        words, said = ["tin"], "Did you mean tiny?"
    assert main(["eval", *words]) == 2
    assert said in capsys.readouterr().err


def test_heldout_and_tiny_ask_the_same() -> None:
    from llava.eval.benchmark import get_benchmark
    from llava.eval.heldout import held_out_questions

    tiny = get_benchmark("tiny")
    files = tiny.files(Path("unused"))
    assert files.questions == Path("unused/tiny/questions.jsonl")
    assert len(held_out_questions(2)) > 10


def write_custom(folder: Path, **rules: Any) -> Path:
    lines = [
        {"question_id": 1, "text": "Is it red?", "answer": "yes", "category": "color"},
        {"question_id": 2, "text": "Which?", "answer": ["A", "B"], "category": "choice"},
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"questions": "q.jsonl"} | rules
    path = folder / "shelf.yaml"
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()))
    return path


def test_a_benchmark_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_custom(tmp_path, match="yes-no", suffix="\nAnswer in one word.", title="My shelf")
    benchmark = read_benchmark(path)
    questions = benchmark.questions(benchmark.files(Path()))
    assert (questions[0].text, questions[0].prompt) == ("Is it red?\nAnswer in one word.", "Is it red?")
    answers = [{"question_id": 1, "text": "Yes, it is."}, {"question_id": 2, "text": "C"}]
    Path("a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    assert main(["eval", "score", "shelf.yaml", "--answers", "a.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == {"accuracy": 50.0}
    assert main(["eval", "shelf.yaml", "--engine", "torch"]) == 0
    assert "My shelf" in capsys.readouterr().out
    (run,) = read_runs([tmp_path / "runs"])
    assert run.benchmark == "shelf.yaml"


@pytest.mark.parametrize(
    ("rule", "text", "references", "score"),
    [
        ("exact", "a cat", ["a cat"], 1), ("exact", "A cat", ["a cat"], 0),
        ("vqa", "The cat!", ["cat"], 1), ("vqa", "dog", ["cat"] * 9 + ["dog"], 0.3),
        ("vqa", "cat", ["cat"] * 10, 1), ("vqa", "bird", ["cat"] * 10, 0),
        ("letter", "B.", ["B"], 1), ("letter", "(b)", ["B"], 0), ("letter", "(B) a dog", ["b"], 1),
        ("letter", "Because", ["B"], 0),
        ("yes-no", "No, it is not.", ["no"], 1), ("yes-no", "Maybe", ["no"], 0),
        ("contains", "It is a red car.", ["red car"], 1), ("contains", "scared", ["car"], 0),
    ],
)  # fmt: skip
def test_the_ways_to_match(rule: str, text: str, references: list[str], score: float) -> None:
    assert MATCHES[rule](text, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"mach": "exact"}, "Did you mean 'match'"),
        ({"match": "exactly"}, "Did you mean 'exact'"),
        ({"questions": 3}, "names no questions"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
    ],
)
def test_a_broken_description_is_said(tmp_path: Path, rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_benchmark(write_custom(tmp_path, **rules))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (None, "InternVL-Chat-Tiny"),
        ("liuhaotian/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("runs/mine/checkpoint-500", "mine_checkpoint-500"),
        ("http://127.0.0.1:8000/v1", "127.0.0.1-8000"),
    ],
)
def test_models_are_called_as_the_original_calls_them(path: str | None, name: str) -> None:
    assert model_id_of(path) == name


@pytest.mark.parametrize(
    ("gpus", "workers", "devices"),
    [(None, 1, [None]), (None, 3, [None] * 3), ("0,2", 1, ["cuda:0", "cuda:2"]), ("1", 2, ["cuda:1"] * 2)],
)
def test_a_worker_for_each_device(gpus: str | None, workers: int, devices: list[str | None]) -> None:
    assert devices_of(argparse.Namespace(gpus=gpus, workers=workers, batch_size=1)) == devices


def test_engine_and_dtype_reach_the_model() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-base")
    add_answering_arguments(parser)
    args = parser.parse_args(["--engine", "openvino", "--dtype", "bfloat16", "--device", "cpu"])
    options = model_options_of(args, path=None, template=None)
    assert (options.engine, options.dtype, options.device) == ("openvino", "bfloat16", "cpu")
