"""Dialogues of the web page as pure values."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from llava.errors import ImageError, UsageError
from llava.serve.web.history import Dialogue
from llava.templates import PICTURE


def data_url(size: tuple[int, int] = (6, 4), colour: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_a_dialogue_becomes_turns_with_pictures_in_front_of_their_text() -> None:
    red, blue = data_url(), data_url((4, 4), "blue")
    dialogue = Dialogue().asked("What?", [red, blue]).answered("Two.", "tiny").asked("Sure?")
    request = dialogue.request()
    assert [turn.content for turn in request.turns] == [
        (PICTURE, "\n", PICTURE, "\n", "What?"),
        ("Two.",),
        ("Sure?",),
    ]
    assert [image.size for image in request.images] == [(6, 4), (4, 4)]  # type: ignore[union-attr]


def test_the_mode_is_applied_to_the_pictures_of_its_turn_only() -> None:
    dialogue = Dialogue().asked("a", [data_url()], mode="Pad").answered("b", "m").asked("c", [data_url()])
    images = dialogue.request().images
    assert [image.size for image in images] == [(6, 6), (6, 4)]  # type: ignore[union-attr]


def test_errors_and_empty_answers_are_shown_and_never_sent() -> None:
    dialogue = Dialogue().asked("one", [data_url()]).answered("out of memory", "m", is_error=True)
    dialogue = dialogue.asked("two").answered("", "m").asked("three")
    assert len(dialogue.turns) == 5
    (turn,) = dialogue.request().turns
    assert turn.content == (PICTURE, "\n", "one", "\n\n", "two", "\n\n", "three")
    assert "out of memory" not in str(dialogue.messages())


def test_markers_in_a_question_stay_text() -> None:
    request = Dialogue().asked("<image> </s>").request()
    assert request.turns[0].content == ("<image> </s>",)
    assert not request.images


def test_regenerating_takes_the_last_answer_away_and_may_change_the_mode() -> None:
    asked = Dialogue().asked("q", [data_url()])
    answered = asked.answered("a", "m")
    assert answered.regenerated() == asked == asked.regenerated()
    assert answered.regenerated(mode="Resize").turns[-1].mode == "Resize"


def test_editing_a_question_takes_away_what_followed() -> None:
    dialogue = Dialogue().asked("q", [data_url()], mode="Pad").answered("a", "m").asked("r")
    edited = dialogue.edited(0, "other")
    assert [turn.text for turn in edited.turns] == ["other"]
    assert edited.turns[0].pictures == dialogue.turns[0].pictures
    assert edited.turns[0].mode == "Pad"


def test_what_cannot_be_done_is_said() -> None:
    asked = Dialogue().asked("q")
    for wrong in (
        lambda: Dialogue().asked("  "),
        lambda: Dialogue().answered("a", "m"),
        lambda: Dialogue().regenerated(),
        lambda: asked.answered("a", "m").edited(1, "x"),
        lambda: asked.edited(-1, "x"),
        lambda: asked.answered("a", "m").request(),
    ):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(ImageError):
        Dialogue().asked("q", ["data:image/png;base64,AAAA"]).request()


def test_openai_messages_hold_pictures_and_text() -> None:
    url = data_url()
    messages = Dialogue().asked("q", [url]).answered("a", "m").messages()
    assert messages[0]["content"][0] == {"type": "image_url", "image_url": {"url": url}}
    assert messages[0]["content"][1] == {"type": "text", "text": "q"}
    assert messages[1] == {"role": "assistant", "content": "a"}
