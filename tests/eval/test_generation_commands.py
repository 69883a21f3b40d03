"""The original's generation commands: prompts, settings and records as it made them, and runs to the end."""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.demo import example_images
from llava.engine.request import SamplingParams
from llava.errors import ConfigError, DataError, FileError, PlaceholderError
from llava.eval import (
    model_qa,
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_science,
    run_llava,
)
from llava.eval.answers import answer_record
from llava.eval.generation import Command, wants_tags
from llava.eval.question_files import read_mmbench_questions, read_science_questions
from llava.processing.processor import Processor
from llava.processing.tokenizer import load_tokenizer
from llava.templates import get_template

COMMANDS: dict[str, tuple[Command, Any]] = {
    "model_vqa_loader.py": (model_vqa_loader.COMMAND, None),
    "model_vqa.py": (model_vqa.COMMAND, None),
    "model_vqa_science.py": (model_vqa_science.COMMAND, model_vqa_science.add_arguments),
    "model_vqa_mmbench.py": (model_vqa_mmbench.COMMAND, model_vqa_mmbench.add_arguments),
}
TOKENIZER = Path(__file__).parents[1] / "fixtures" / "eval" / "labels"
RUNS = (
    "vqav2", "gqa", "vizwiz", "textvqa", "pope", "mme", "seed_bench", "llava_bench", "mmvet", "scienceqa",
    "scienceqa_no_single_pred", "vqav2_chunk1of3", "vqav2_llava_v1", "vqav2_llama2", "vqav2_imse", "vqav2_v0",
    "mmbench", "mmbench_cn", "mmbench_all_rounds",
)  # fmt: skip


def parsed(original: Path, run: dict[str, Any]) -> tuple[Command, argparse.Namespace]:
    command, add_arguments = COMMANDS[run["script"]]
    parser = command.parser()
    if add_arguments is not None:
        add_arguments(parser)
    words = ["--question-file", str(original / run["question_file"]), "--conv-mode", run["conv_mode"]]
    words += ["--temperature", "0", "--image-folder", "pictures", *run["extra_args"]]
    return command, parser.parse_all(words)


@pytest.mark.parametrize("name", RUNS)
def test_prompts_settings_and_records_are_the_originals(original: Path, name: str) -> None:
    runs = json.loads((original / "inference" / "runs.json").read_text())
    run = next(run for run in runs if run["name"] == name)
    lines = (original / "inference" / f"{name}.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    command, args = parsed(original, run)
    asking, template = command.asking(args), get_template(command.model_options(args).template or "")
    processor = Processor(
        tokenizer=load_tokenizer(TOKENIZER / run["tokenizer"]),
        image_processor=None,  # type: ignore[arg-type]
        template=template,
        num_image_tokens=1,
        im_start_end=run["mm_use_im_start_end"],
    )
    questions = command.chunk(args)
    assert len(questions) == len(recorded) == run["n"]
    for question, expected in zip(questions, recorded, strict=True):
        pictures = [] if question.image is None else ["picture"]
        assert bool(pictures) == (expected["images_shape"] is not None)
        request = asking.request(question, pictures)
        assert list(processor.encode(request.turns)) == expected["input_ids"]
        text = expected["answer_record"]["text"]
        record = answer_record(question, text, model_id="llava-v1.5-fixture", answer_id="<22-char shortuuid>")
        assert record == expected["answer_record"]
        assert list(record) == expected["answer_keys"]
        wanted = expected["generate_kwargs"]
        assert request.sampling.is_greedy != wanted["do_sample"]
        assert request.sampling.num_beams == wanted.get("num_beams", 1)
        assert request.sampling.max_new_tokens == wanted["max_new_tokens"]


def test_a_beam_search_that_samples_is_refused(original: Path) -> None:
    runs = json.loads((original / "inference" / "runs.json").read_text())
    command, args = parsed(original, next(run for run in runs if run["name"] == "vqav2_sampled"))
    with pytest.raises(ConfigError, match="num_beams is 3 with sampling"):
        command.asking(args)
    args.num_beams = 1
    assert command.asking(args).sampling == SamplingParams(temperature=0.2, top_p=0.7, max_new_tokens=128)


def test_chunks_have_the_originals_sizes(original: Path) -> None:
    from llava.eval.answering import chunk
    from llava.eval.questions import Question

    for case in json.loads((original / "inference" / "chunks.json").read_text()):
        questions = [Question(id=number, text="?") for number in range(case["len"])]
        sizes = [len(chunk(questions, case["n"], index)) for index in range(case["n"])]
        if "sizes" in case:
            assert sizes == case["sizes"] + [0] * len(case["out_of_range_k"])


@pytest.mark.parametrize(
    ("model", "template", "tags"),
    [
        ("llava-plain-13b", "llava_v1", True),
        ("llava-plain-Finetune", "llava_v1", False),
        ("llava-plain-13b", "v1_mmtag", False),
        ("llava-v1.5-7b", "llava_v1", False),
    ],
)
def test_a_model_of_plain_pretraining_gets_picture_tags(model: str, template: str, tags: bool) -> None:
    assert wants_tags(model, template) == tags


def test_pictures_are_cropped_only_where_the_original_is_asked_for() -> None:
    for command, expected in ((model_vqa.COMMAND, "square"), (model_vqa_loader.COMMAND, None)):
        for words, aspect in (([], None), (["--compat"], expected)):
            assert command.model_options(command.parser().parse_all(words)).image_aspect == aspect


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Questions about the example pictures, in the working directory."""
    (tmp_path / "pictures").mkdir()
    for number, path in enumerate(example_images()[:2]):
        Image.open(path).save(tmp_path / "pictures" / f"{number}.png")
    lines = [
        {"question_id": n, "image": f"{n % 2}.png", "text": text, "category": "default"}
        for n, text in enumerate(
            ["How many objects are there?", "What is at the top left?", "Is there a red circle?"] * 4
        )
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(answers: str, *more: str) -> list[str]:
    return [
        "--question-file", "questions.jsonl", "--image-folder", "pictures", "--answers-file", answers,
        "--temperature", "0", "--conv-mode", "vicuna_v1", "--engine", "torch", *more,
    ]  # fmt: skip


@pytest.mark.usefixtures("workplace")
def test_one_process_several_and_chunks_give_the_same_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert model_vqa_loader.main(words_of("one.jsonl", "--check-batching", "3")) == 0
    assert "0 of 3 answers change" in capsys.readouterr().err
    # More workers than blocks of questions: some have nothing to do.
    assert model_vqa_loader.main(words_of("several.jsonl", "--workers", "2")) == 0
    joined = ""
    for index in range(5):
        assert model_vqa_loader.main(words_of("c.jsonl", "--num-chunks", "5", "--chunk-idx", str(index))) == 0
        joined += Path("c.jsonl").read_text()
        for leftover in Path().glob("c.jsonl*"):
            leftover.unlink()
    one = Path("one.jsonl").read_text()
    assert len(one.splitlines()) == 12
    assert Path("several.jsonl").read_text() == one == joined


@pytest.mark.usefixtures("workplace")
def test_a_chunk_that_does_not_exist_is_an_empty_file() -> None:
    assert model_vqa.main(words_of("a.jsonl", "--num-chunks", "9", "--chunk-idx", "8")) == 0
    assert Path("a.jsonl").read_text() == ""
    assert model_vqa.main(words_of("a.jsonl", "--num-chunks", "9", "--chunk-idx", "9")) == 2


@pytest.mark.usefixtures("workplace")
def test_a_killed_process_leaves_what_the_next_one_finishes_to_the_byte() -> None:
    command = [
        sys.executable,
        "-m",
        "llava.eval.model_vqa_loader",
        *words_of("killed.jsonl", "--batch-size", "1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
    journal, deadline = Path("killed.jsonl.journal.jsonl"), time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count("\n") >= 2) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_kept = journal.read_text().count("\n") if journal.exists() else 12
    assert num_kept >= 2
    assert model_vqa_loader.main(words_of("killed.jsonl", "--batch-size", "1")) == 0
    assert model_vqa_loader.main(words_of("whole.jsonl")) == 0
    for suffix in ("", ".settings.json"):
        assert Path(f"killed.jsonl{suffix}").read_bytes() == Path(f"whole.jsonl{suffix}").read_bytes()
    assert not journal.exists()


def test_questions_without_pictures_leave_the_prompt_out_of_their_records(workplace: Path) -> None:
    (workplace / "text.jsonl").write_text('{"question_id": 1, "text": "Who made you?", "category": "x"}\n')
    words = ["--question-file", "text.jsonl", "--answers-file", "qa.jsonl", "--temperature", "0"]
    assert model_qa.main([*words, "--engine", "torch"]) == 0
    record = json.loads(Path("qa.jsonl").read_text())
    assert list(record) == ["question_id", "text", "answer_id", "model_id", "metadata"]
    assert record["text"]


def picture_text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


@pytest.mark.usefixtures("workplace")
def test_mmbench_is_asked_about_the_pictures_in_its_table_in_every_round() -> None:
    picture = picture_text(Path("pictures/0.png"))
    rows = [
        ["index", "question", "hint", "A", "B", "C", "D", "image"],
        ["1", "How many?", "Look.", "1", "2", "", "", picture],
        # Later tables name the row that has the picture.
        ["1000001", "How many?", "", "2", "1", "None", "4", "1"],
    ]
    Path("table.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    words = [
        "--question-file",
        "table.tsv",
        "--answers-file",
        "mm.jsonl",
        "--all-rounds",
        "--single-pred-prompt",
    ]
    assert model_vqa_mmbench.main([*words, "--temperature", "0", "--engine", "torch"]) == 0
    records = [json.loads(line) for line in Path("mm.jsonl").read_text().splitlines()]
    assert [(record["question_id"], record["round_id"]) for record in records] == [
        (1, 0), (1, 1), (1000001, 0), (1000001, 1),
    ]  # fmt: skip
    assert records[0]["prompt"] == "Look.\nHow many?\nA. 1\nB. 2"
    assert (records[1]["options"], records[1]["option_char"]) == (["2", "1"], ["B", "A"])


@pytest.mark.usefixtures("workplace")
def test_scienceqa_asks_with_and_without_pictures() -> None:
    entries = [
        {"id": "1", "image": "0.png", "conversations": [{"from": "human", "value": "<image>\nWhat?\nA. x"}]},
        {"id": "2", "conversations": [{"from": "human", "value": "Why?\nA. y"}]},
    ]
    Path("sqa.json").write_text(json.dumps(entries))
    words = ["--question-file", "sqa.json", "--answers-file", "sqa.jsonl", "--image-folder", "pictures"]
    words += ["--temperature", "0", "--engine", "torch", "--conv-mode", "vicuna_v1"]
    assert model_vqa_science.main([*words, "--single-pred-prompt"]) == 0
    records = [json.loads(line) for line in Path("sqa.jsonl").read_text().splitlines()]
    assert records[0]["prompt"].startswith("<image>\nWhat?\nA. x\nAnswer with")
    assert records[1]["prompt"].startswith("Why?")
    assert model_vqa_science.main([*words, "--answer-prompter"]) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [("{}", "is no list of questions"), ('[{"id": 1}]', "entry 1 is no question")],
)
def test_a_broken_scienceqa_file_is_said(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "sqa.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_science_questions(tmp_path / "sqa.json")


def test_a_broken_mmbench_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("index\tquestion\n1\tWhat?\n")
    with pytest.raises(DataError, match="has no column A, B, image"):
        read_mmbench_questions(tmp_path / "a.tsv")
    with pytest.raises(FileError, match="cannot be read as a table"):
        read_mmbench_questions(tmp_path / "missing.tsv")


@pytest.mark.usefixtures("workplace")
def test_the_one_shot_command_and_its_function_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--image-file", "pictures/0.png", "--query", "How many objects are there?"]
    assert run_llava.main([*words, "--temperature", "0", "--engine", "torch"]) == 0
    printed = capsys.readouterr().out
    args = type("Args", (), {"model_path": None, "query": words[3], "image_file": words[1], "temperature": 0})
    run_llava.eval_model(args)  # type: ignore[arg-type]
    assert capsys.readouterr().out == printed != "\n"


def test_the_query_may_say_where_the_pictures_go() -> None:
    (turn,) = run_llava.request_of("Compare <image-placeholder> with <image-placeholder>.", 2)
    assert [item if isinstance(item, str) else 0 for item in turn.content] == [
        "Compare ",
        0,
        " with ",
        0,
        ".",
    ]
    (turn,) = run_llava.request_of("<image-placeholder>\nWhat?", 1)
    assert [item if isinstance(item, str) else 0 for item in turn.content] == [0, "\nWhat?"]
    with pytest.raises(PlaceholderError):
        run_llava.request_of("Only <image-placeholder>", 2)
