"""The interactive chat: history, pictures, commands, interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.command import EXIT_OK, EXIT_WITH_FAILURES
from llava.engine.request import Request, SamplingParams
from llava.errors import DataError, FileError, ImageError
from llava.serve.session import Picture, Session, open_picture
from llava.serve.terminal import Terminal, role_names
from llava.templates import get_template
from tests.serve.fakes import TOO_LONG, ScriptedEngine, save_picture, text_of

Line = str | type[BaseException]


def opened(source: str) -> Picture:
    return open_picture(source, allow_url=False, on_notice=pytest.fail)


def reader(lines: Sequence[Line], prompts: list[str]) -> Callable[[str], str]:
    waiting = list(lines)

    def read(prompt: str) -> str:
        prompts.append(prompt)
        line = waiting.pop(0) if waiting else EOFError
        if isinstance(line, str):
            return line
        raise line

    return read


class Chat:
    """A terminal with scripted lines, and what came of them."""

    def __init__(
        self,
        *lines: Line,
        pictures: Sequence[str] = (),
        engine: ScriptedEngine | None = None,
        is_interactive: bool = True,
    ) -> None:
        self.prompts: list[str] = []
        self.engine = engine or ScriptedEngine()
        self.session = Session(waiting=[opened(source) for source in pictures])
        self.terminal = Terminal(
            engine=self.engine,
            session=self.session,
            model="test model",
            open_picture=opened,
            open_saved_picture=opened,
            read_line=reader(lines, self.prompts),
            is_interactive=is_interactive,
        )
        self.exit_code = self.terminal.run()

    @property
    def asked(self) -> list[list[str]]:
        return [[text_of(turn) for turn in request.turns] for request in self.engine.requests]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return save_picture(tmp_path / "red.png")


@pytest.fixture
def other_picture(tmp_path: Path) -> str:
    return save_picture(tmp_path / "other one.png", width=9)


def pieces(*texts: str | None) -> Callable[[Request], Sequence[str | None]]:
    return lambda _: texts


def test_an_answer_is_streamed_after_the_name_of_its_side(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat("What?", pictures=[picture])
    out = capsys.readouterr().out
    assert "[picture 1] red.png (8x6)\n" in out
    assert "ASSISTANT: heard: # What? pictures: [8]\n" in out
    assert out.endswith("exit...\n")
    assert chat.prompts[0] == "USER: "
    assert chat.exit_code == EXIT_OK


def test_history_goes_with_the_next_question_and_pictures_only_with_the_first(picture: str) -> None:
    chat = Chat("One?", "Two?", pictures=[picture], engine=ScriptedEngine(pieces(" A", "nswer. ")))
    assert chat.asked == [["#\nOne?"], ["#\nOne?", "Answer.", "Two?"]]
    assert [len(request.images) for request in chat.engine.requests] == [1, 1]


@pytest.mark.parametrize("last", ["", "   ", EOFError, "/exit", "/quit"])
def test_the_chat_ends_as_the_original_does(last: Line, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(last, "not asked")
    assert chat.asked == []
    assert capsys.readouterr().out.endswith("exit...\n")


def test_user_text_that_spells_control_tokens_stays_text() -> None:
    chat = Chat("</s> <image> USER:")
    assert chat.engine.requests[0].turns[0].content == ("</s> <image> USER:",)


def test_other_pictures_begin_a_new_conversation(picture: str, other_picture: str) -> None:
    chat = Chat("One?", f"/image '{other_picture}'", "Two?", pictures=[picture])
    assert chat.asked[1] == ["#\nTwo?"]
    assert chat.engine.requests[1].images[0].size == (9, 6)  # type: ignore[union-attr]


def test_added_pictures_go_with_the_next_question(picture: str, other_picture: str) -> None:
    engine = ScriptedEngine(pieces("Yes."))
    chat = Chat("One?", f"/add {picture} '{other_picture}'", "Two?", pictures=[picture], engine=engine)
    assert chat.asked[1] == ["#\nOne?", "Yes.", "#\n#\nTwo?"]
    assert len(engine.requests[1].images) == 3


def test_pictures_are_listed(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    Chat("/images", pictures=[picture])
    Chat("/images")
    out = capsys.readouterr().out
    assert f"[picture 1] {picture} 8x6\n" in out
    assert "no picture\n" in out


def test_undo_forgets_the_last_question_and_its_pictures_wait_again(picture: str) -> None:
    engine = ScriptedEngine(pieces("Yes."))
    chat = Chat(
        "One?", "Two?", "/undo", "Three?", "/undo", "/undo", "Four?", pictures=[picture], engine=engine
    )
    assert chat.asked[2] == ["#\nOne?", "Yes.", "Three?"]
    assert chat.asked[3] == ["#\nFour?"]


def test_undo_of_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Chat("/undo")
    assert "nothing to undo\n" in capsys.readouterr().out


def test_reset_keeps_the_pictures(picture: str, other_picture: str) -> None:
    chat = Chat("One?", f"/add '{other_picture}'", "/reset", "Two?", pictures=[picture])
    assert chat.asked[1] == ["#\n#\nTwo?"]


def test_an_interrupted_answer_is_kept_as_far_as_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat("Tell.", "Go on.", engine=ScriptedEngine(pieces("Once ", "upon ", None, "a time")))
    assert "ASSISTANT: Once upon  [stopped]\n" in capsys.readouterr().out
    assert chat.asked[1] == ["Tell.", "Once upon", "Go on."]
    assert [message.is_stopped for message in chat.session.messages] == [False, True, False, True]


def test_a_question_interrupted_before_its_answer_is_forgotten(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat("Tell.", "Go on.", pictures=[picture], engine=ScriptedEngine(pieces(None)))
    assert chat.asked == [["#\nTell."], ["#\nGo on."]]
    assert "the question is forgotten" in capsys.readouterr().out


def test_ctrl_c_at_the_prompt_ends_the_chat_only_when_pressed_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = Chat(KeyboardInterrupt, "One?", KeyboardInterrupt, KeyboardInterrupt, "not asked")
    assert chat.asked == [["One?"]]
    out = capsys.readouterr().out
    assert "Ctrl-C again" in out
    assert out.endswith("exit...\n")


def test_a_failing_question_is_an_error_line_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(TOO_LONG, "One?")
    assert capsys.readouterr().err == (
        "error[context-length]: the prompt has 9 tokens and the model's context 8. Shorten it.\n"
    )
    assert chat.asked[1] == ["One?"]
    assert chat.exit_code == EXIT_OK


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/imag x.png", "error[usage]: command /imag is not known. Did you mean /image? /help lists them.\n"),
        ("/image missing.png", "error[image]: missing.png does not exist. Check the path.\n"),
        ("/image", "error[usage]: /image takes one or more pictures. Write /image PATH...\n"),
        ("/image 'x", 'error[usage]: cannot read "\'x": No closing quotation. Close the quotation mark.\n'),
        ("/save", "error[usage]: /save takes one file. Write /save FILE.\n"),
        ("/undo 2", "error[usage]: /undo takes nothing after it. Write /undo alone.\n"),
        (
            "/set temperature=-1",
            "error[config]: temperature is -1.0. It must be at least 0 and at most 100.\n",
        ),
        ("/set top_k=many", "error[usage]: top_k cannot be 'many'. Give a number.\n"),
        ("/load missing.json", "error[file]: missing.json does not exist. Check the path.\n"),
    ],
)
def test_a_wrong_command_is_one_line_and_changes_nothing(
    line: str, error: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat("One?", line, pictures=[picture])
    assert capsys.readouterr().err == error
    assert len(chat.session.messages) == 2
    assert chat.session.sampling == SamplingParams()


def test_settings_change_for_the_next_question() -> None:
    chat = Chat("/set temperature=0.5 max-new-tokens=9 seed=3", "One?", "/set seed=none", "Two?")
    assert chat.engine.requests[0].sampling == SamplingParams(temperature=0.5, max_new_tokens=9, seed=3)
    assert chat.engine.requests[1].sampling.seed is None


def test_speed_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    Chat("/speed", "One?", "/speed", "Two?", engine=ScriptedEngine(pieces("a", "b", "c")))
    speed = "[prompt 7 tokens, answer 3 tokens, first after 0.50 s, then 2.0 tokens/s]\n"
    assert capsys.readouterr().out.count(speed) == 1


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    Chat("/help")
    out = capsys.readouterr().out
    for name in ("image", "images", "add", "undo", "reset", "save", "load", "set", "speed", "help", "exit"):
        assert f"/{name}" in out


@given(
    st.one_of(st.just(""), st.text()),
    st.sampled_from(["image", "add", "images", "undo", "reset", "load", "set", "speed", "help", ""]),
)
def test_no_line_breaks_the_chat(rest: str, command: str) -> None:
    chat = Chat(f"/{command} {rest}", f"/{command}{rest}", is_interactive=False)
    assert chat.exit_code in (EXIT_OK, EXIT_WITH_FAILURES)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "x" * 5000, "/", "."])
@pytest.mark.parametrize("command", ["image", "load", "save"])
def test_no_path_breaks_the_chat(command: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    Chat(f"/{command} {path}")
    assert capsys.readouterr().err.startswith("error[")


def test_two_slashes_ask_a_question_that_begins_with_one() -> None:
    assert Chat("//etc is what?").asked == [["/etc is what?"]]


def test_a_pipe_gets_the_answers_and_nothing_else(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(
        "One?",
        "/speed",
        "Two?",
        pictures=[picture],
        is_interactive=False,
        engine=ScriptedEngine(pieces("Yes")),
    )
    captured = capsys.readouterr()
    assert captured.out == "Yes\nYes\nexit...\n"
    assert captured.err.startswith("[prompt 7 tokens")
    assert set(chat.prompts) == {""}
    assert chat.exit_code == EXIT_OK


def test_an_error_in_a_pipe_is_seen_in_the_exit_code() -> None:
    assert Chat(TOO_LONG, is_interactive=False).exit_code == EXIT_WITH_FAILURES


def test_an_answer_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Chat("One?", engine=ScriptedEngine(pieces("a\x1b[2Jb\x07\tc\n")))
    assert "a[2Jb\tc\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "names"), [("vicuna_v1", ("USER", "ASSISTANT")), ("mpt", ("user", "assistant"))]
)
def test_the_sides_are_called_as_in_the_original(template: str, names: tuple[str, str]) -> None:
    assert role_names(get_template(template)) == names


def test_debug_shows_prompt_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(engine=ScriptedEngine(pieces("Yes.")))
    chat.terminal.shows_debug = True
    chat.terminal.read_line = reader(["One?"], [])
    chat.terminal.run()
    out = capsys.readouterr().out
    assert "{'prompt': \"A chat between a curious user" in out
    assert "USER: One? ASSISTANT:\", 'outputs': 'Yes.'}" in out


def test_a_transcript_is_continued_from_another_directory(
    picture: str, other_picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = ScriptedEngine(pieces("Yes.", None))
    Chat(
        "One?", "/add 'other one.png'", "/set seed=5", "/save talk.json", pictures=["red.png"], engine=engine
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    chat = Chat("/load ../talk.json", "Two?")
    assert chat.asked == [["#\nOne?", "Yes.", "#\nTwo?"]]
    assert chat.session.sampling.seed == 5
    assert chat.session.messages[1].is_stopped
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["model"] == "test model"
    assert saved["template"] == "vicuna_v1"
    assert saved["messages"][0]["images"] == [picture]
    assert saved["waiting_images"] == [other_picture]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format_version": 9}, DataError),
        ({"messages": [{"role": "user", "text": "alone"}]}, DataError),
        ({"messages": [{"role": "system", "text": "x"}]}, DataError),
        ({"messages": 3}, DataError),
        ({"sampling": {"heat": 1, "stop": []}}, DataError),
        ({"waiting_images": ["missing.png"]}, ImageError),
        ({"waiting_images": ["https://example.com/a.png"]}, ImageError),
    ],
)
def test_a_broken_transcript_changes_nothing(
    change: dict[str, object], error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    Session().save(path, model="m", template="v1")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    session = Session()
    session.add("One?", "Yes.")
    before = list(session.messages)
    with pytest.raises(error):
        session.load(path, opened)
    assert session.messages == before


def test_a_transcript_that_cannot_be_written_is_an_error_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="is no folder"):
        Session().save(tmp_path / "file" / "talk.json", model="m", template="v1")
