"""`llava chat` from its command line to its output, with an engine that has no model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.cli import main
from llava.command import EXIT_INTERRUPTED
from llava.engine.model_options import ModelOptions
from llava.engine.request import SamplingParams
from llava.files import fingerprint
from tests.serve.fakes import TOO_LONG, ScriptedEngine, save_picture, text_of

Ask = Callable[..., int]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return save_picture(tmp_path / "red.png")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine()
    monkeypatch.setattr("llava.serve.chat.load_engine", lambda _: engine)
    return engine


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[ModelOptions]:
    """What was asked to be loaded; loading goes no further."""
    options: list[ModelOptions] = []

    def load(wanted: ModelOptions) -> ScriptedEngine:
        options.append(wanted)
        return ScriptedEngine()

    monkeypatch.setattr("llava.serve.chat.load_engine", load)
    return options


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_one_question_is_answered_on_stdout_and_nothing_else(
    engine: ScriptedEngine, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", "m", "--image", picture, "-p", "How many?"]) == 0
    assert capsys.readouterr() == ("heard: # How many? pictures: [8]\n", "")
    assert engine.requests[0].sampling == SamplingParams()


def test_several_pictures_are_taken_either_way(engine: ScriptedEngine, picture: str) -> None:
    main(["chat", "--image", picture, picture, "--image", picture, "-p", "?"])
    assert text_of(engine.requests[0].turns[0]) == "#\n#\n#\n?"


@pytest.mark.parametrize(
    ("content", "question"),
    [(b" How many?\n", "How many?"), (b"", "Describe the picture."), (b"\n", "Describe the picture.")],
)
def test_without_a_terminal_the_question_comes_from_stdin(
    content: bytes, question: str, engine: ScriptedEngine, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, content)
    assert main(["chat", "--image", picture]) == 0
    assert text_of(engine.requests[0].turns[0]) == f"#\n{question}"


def test_lines_of_a_pipe_are_a_chat_when_asked_for(
    engine: ScriptedEngine,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give_stdin(monkeypatch, b"One?\nTwo?\n")
    assert main(["chat", "--image", picture, "--interactive"]) == 0
    assert len(engine.requests) == 2
    assert capsys.readouterr().out.endswith("exit...\n")


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("options", [[], ["--interactive"]])
def test_input_that_is_not_utf_8_is_one_line_and_exit_code_2(
    options: list[str], picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, b"caf\xe9?\n")
    assert main(["chat", "--image", picture, *options]) == 2
    assert "is not UTF-8. Mend its encoding.\n" in capsys.readouterr().err


@pytest.mark.usefixtures("engine")
def test_json_tells_the_answer_and_how_it_came_about(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", "some/model", "--image", picture, "-p", "What?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "model",
        "prompt": "What?",
        "images": [picture],
        "answer": "heard: # What? pictures: [8]",
        "finish_reason": "stop",
        "num_prompt_tokens": 7,
        "num_new_tokens": 29,
        "first_token_s": 0.5,
        "total_s": 1.5,
    }


@pytest.mark.usefixtures("engine")
def test_speed_and_prompt_go_beside_the_answer(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--image", picture, "-p", "What?", "--speed", "--debug"]) == 0
    out, err = capsys.readouterr()
    assert out == "heard: # What? pictures: [8]\n"
    assert "USER: <image>\\nWhat? ASSISTANT:" in err
    assert "[prompt 7 tokens, answer 29 tokens, first after 0.50 s" in err


def test_an_interrupted_answer_is_shown_as_far_as_it_went(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ScriptedEngine(lambda _: ["Once ", None, "more"])
    monkeypatch.setattr("llava.serve.chat.load_engine", lambda _: engine)
    assert main(["chat", "--image", picture, "-p", "Tell."]) == EXIT_INTERRUPTED
    assert capsys.readouterr().out == "Once \n"


def test_options_reach_the_model_and_the_engine(loaded: list[ModelOptions], picture: str) -> None:
    command = "chat --model m --model-base b --device cpu --dtype float32 --load-4bit --conv-mode llava_v1 "
    command += "--device-map balanced "
    command += (
        "--image-size 448 --image-aspect-ratio pad -p ? --temperature 0.5 --top-p 0.9 --top-k 5 --seed 1"
    )
    assert main([*command.split(), "--image", picture]) == 0
    assert loaded == [ModelOptions("m", "b", 4, "cpu", "float32", "llava_v1", 448, "pad", "balanced")]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--image", "missing.png", "-p", "?"],
            "error[image]: missing.png does not exist. Check the path.\n",
        ),
        (["-p", "?", "--image", __file__], "error[image]: "),
        (["-p", ""], "error[usage]: the question of -p is empty. Write one, or leave -p out.\n"),
        (["-p", "?", "--template", "vicuna_v2"], "error[config]: template is 'vicuna_v2'"),
        (["-p", "?", "--temperature", "nan"], "error[config]: temperature is nan. Give a finite number.\n"),
        (["-p", "?", "--max-new-tokens", "0"], "error[config]: max_new_tokens is 0. "),
        (["-p", "?", "--load-4bit", "--load-8bit"], "error[usage]: argument --load-8bit: not allowed with"),
        (["--input", "x"], "error[usage]: --input without --output. Give --output too.\n"),
        (["--output", "x"], "error[usage]: --output without --input. Give --input too.\n"),
        (["--input", "x", "--output", "y"], "error[file]: x does not exist. Check the path.\n"),
        (["--input", "x", "--output", "y", "--image", "z"], "error[usage]: --input goes with neither"),
        (["--input", "x", "--output", "y", "--batch-size", "0"], "error[usage]: --batch-size is 0. "),
        (["--interactive", "--json"], "error[usage]: --json needs a question. "),
        (["-p", "?", "--image-folder", "x"], "error[usage]: --image-folder is for --input. "),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: list[str], error: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        arguments if "--image" in arguments or "--input" in arguments else [*arguments, "--image", picture]
    )
    assert main(["chat", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(error)
    assert err.count("\n") == 1


def test_a_question_that_cannot_be_answered_is_one_line_and_exit_code_2(
    engine: ScriptedEngine, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--image", picture, "-p", TOO_LONG]) == 2
    assert capsys.readouterr() == (
        "",
        "error[context-length]: the prompt has 9 tokens and the model's context 8. Shorten it.\n",
    )
    assert len(engine.requests) == 1


def test_a_fingerprint_changes_with_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "config.json").write_text("[]")
    assert fingerprint(tmp_path) != before
