"""`python -m llava.serve.cli`: the original's options, and what they lead to."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from llava.engine.model_options import ModelOptions, device_map_of
from llava.engine.request import SamplingParams
from llava.serve.cli import main
from tests.serve.fakes import ScriptedEngine, save_picture, text_of


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return save_picture(tmp_path / "red.png")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine(lambda _: ["Yes", "."])
    monkeypatch.setattr("llava.serve.cli.load_engine", lambda _: engine)
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo?\n\nnot asked\n"))
    return engine


def test_lines_are_answered_until_an_empty_one(
    engine: ScriptedEngine, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model-path", "m", "--image-file", picture]) == 0
    assert [[text_of(turn) for turn in request.turns] for request in engine.requests] == [
        ["#\nOne?"],
        ["#\nOne?", "Yes.", "Two?"],
    ]
    assert capsys.readouterr().out == "Yes.\nYes.\nexit...\n"


def test_defaults_are_the_originals(engine: ScriptedEngine, picture: str) -> None:
    main(["--model-path", "m", "--image-file", picture])
    assert engine.requests[0].sampling == SamplingParams(temperature=0.2, max_new_tokens=512)


def test_every_option_of_the_original_is_taken(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[ModelOptions] = []

    def load(options: ModelOptions) -> ScriptedEngine:
        loaded.append(options)
        return ScriptedEngine(lambda _: ["Yes."])

    monkeypatch.setattr("llava.serve.cli.load_engine", load)
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\n"))
    command = "--model-path m --model-base b --device cpu --conv-mode llava_v1 --temperature 0 --load-8bit "
    command += f"--max-new-tokens 9 --debug --image-aspect-ratio square --image-file {picture}"
    assert main(command.split()) == 0
    assert loaded == [
        ModelOptions(path="m", base="b", bits=8, device="cpu", template="llava_v1", image_aspect="square")
    ]
    assert "'outputs': 'Yes.'}" in capsys.readouterr().out


def test_cuda_is_taken_for_the_best_device_where_there_is_none(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    loaded: list[ModelOptions] = []

    def load(options: ModelOptions) -> ScriptedEngine:
        loaded.append(options)
        return ScriptedEngine()

    monkeypatch.setattr("llava.serve.cli.load_engine", load)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["--image-file", picture, "--device", "cuda"]) == 0
    assert loaded[0].device is None
    assert capsys.readouterr().err.startswith("warning: device is 'cuda'")


def test_options_may_be_shortened_as_in_the_original(engine: ScriptedEngine, picture: str) -> None:
    assert main(["--model-p", "m", "--image-f", picture, "--temp", "0"]) == 0
    assert engine.requests[0].sampling.is_greedy


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "error[usage]: the following arguments are required: --image-file. "),
        (["--image-file", "missing.png"], "error[image]: missing.png does not exist. Check the path.\n"),
        (["--image-file", "ftp://x/y.png"], "error[image]: Pictures are not loaded by 'ftp'. "),
        (["--image-file", "x", "--conv-mode", "lava_v1"], "error[config]: template is 'lava_v1'"),
        (
            ["--image-file", "x", "--image-aspect-ratio", "round"],
            "error[usage]: argument --image-aspect-ratio: ",
        ),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(error)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [
        (None, 0, None),
        (None, 1, None),
        (None, 2, "auto"),
        ("cuda", 2, "auto"),
        ("cuda:1", 2, None),
        ("cpu", 2, None),
    ],
)
def test_several_gpus_share_the_model_as_in_the_original(
    device: str | None, num_gpus: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert device_map_of(device) == expected
