"""The commands with a real (tiny) model: from the command line to the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llava
from llava.cli import main

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "tests" / "fixtures" / "checkpoints"
MODEL = str(CHECKPOINTS / "llava-a-clip-mlp2x")
IMAGES = CHECKPOINTS / "images"
OPTIONS = ["--model", MODEL, "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "6"]


def test_the_command_answers_as_the_engine_does(capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(IMAGES / "0.png")
    assert main(["chat", *OPTIONS, "--image", picture, "-p", "What is shown?", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    engine = llava.load(MODEL, device="cpu", dtype="float32")
    assert record["answer"] == engine.ask("What is shown?", images=[picture], max_new_tokens=6)
    assert record["num_new_tokens"] <= 6


def test_a_folder_becomes_a_jsonl_that_only_the_same_command_goes_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    command = ["chat", *OPTIONS, "--input", str(IMAGES), "--output", str(output), "-p", "What?", "--json"]
    assert main(command) == 0
    num_pictures = len(list(IMAGES.glob("*.png")))
    assert json.loads(capsys.readouterr().out)["num_answered"] == num_pictures
    before = output.read_bytes()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["num_skipped"] == num_pictures
    assert output.read_bytes() == before
    settings = json.loads((tmp_path / "answers.jsonl.settings.json").read_text())
    assert settings["model"] == "llava-a-clip-mlp2x"
    assert settings["engine"] == "torch float32 on cpu"
    assert main([*command, "--image-aspect-ratio", "square"]) == 2
    assert "was made with other settings: image (" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_a_folder_that_is_no_checkpoint_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", str(tmp_path), "--image", str(IMAGES / "0.png"), "-p", "?"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error[checkpoint]: ")
    assert error.count("\n") == 1


def test_describe_says_what_a_checkpoint_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", MODEL, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert main(["describe", MODEL]) == 0
    text = capsys.readouterr().out
    for name in described:
        assert name.replace("_", " ") in text


def test_the_original_command_answers_lines_of_a_pipe() -> None:
    command = [sys.executable, "-m", "llava.serve.cli", "--model-path", MODEL, "--device", "cpu"]
    command += ["--image-file", str(IMAGES / "0.png"), "--temperature", "0", "--max-new-tokens", "4"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        input="What is shown?\nAnd now?\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("exit...\n")
    assert "Traceback" not in result.stderr


def test_without_a_picture_the_embedded_model_gets_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-p", "How many objects are there?"]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert err.startswith("no --image given: using the example picture ")
