"""Dialogues as files: what is written is read again, and nothing else gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llava.errors import ImageError, ImageLimitError, LlavaError, RequestError, TooLargeError
from llava.serve.web import history_file
from llava.serve.web.history import Dialogue
from llava.serve.web.history_file import from_file, from_json, to_json
from tests.serve.web.test_history import data_url

DIALOGUE = (
    Dialogue()
    .asked("Was ist das? \U0001f600 <image>", [data_url(), data_url((3, 3), "blue")], mode="Pad")
    .answered("gone", "tiny", is_error=True)
    .asked("again")
    .answered("A picture.", "tiny")
)


def file_of(value: object) -> bytes:
    return json.dumps(value).encode()


def own(**changes: Any) -> bytes:
    turn = {"role": "user", "text": "q"} | changes
    return file_of({"format": "llava-dialogue", "version": 1, "turns": [turn]})


def test_a_download_is_read_again() -> None:
    assert from_file(file_of(to_json(DIALOGUE))) == DIALOGUE
    assert from_json(to_json(DIALOGUE)) == DIALOGUE


def test_openai_messages_are_written_and_read() -> None:
    read = from_file(file_of({"messages": DIALOGUE.messages()}))
    assert read.messages() == DIALOGUE.messages()
    bare = from_file(
        file_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    )
    assert [turn.text for turn in bare.turns] == ["Be brief.\n\nHello"]


def test_the_type_of_a_picture_is_what_its_bytes_say() -> None:
    lying = data_url().replace("image/png", "image/svg+xml")
    assert from_file(own(pictures=[lying])).pictures == (data_url(),)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"3", "messages is no list"),
        (b"{}", "messages is no list"),
        (b"[]", "messages"),
        (file_of({"format": "other", "version": 1}), "no dialogue of this page"),
        (file_of({"format": "llava-dialogue", "version": 2, "turns": []}), "version '2'"),
        (file_of({"format": "llava-dialogue", "version": True, "turns": []}), "version 'True'"),
        (file_of({"format": "llava-dialogue", "version": 1, "turns": {}}), "turns is no list"),
        (file_of({"format": "llava-dialogue", "version": 1, "turns": [7]}), "turn 1: "),
        (own(text=7), "turn 1: "),
        (own(text=""), "empty"),
        (own(role="system"), "the role is 'system'"),
        (own(role="assistant"), "answers no question"),
        (own(is_error=1), "is_error"),
        (own(is_error=True), "failed question"),
        (own(mode="Fill"), "picture mode is 'Fill'"),
        (own(pictures="x"), "no list of texts"),
        (own(pictures=["http://127.0.0.1/x.png"]), "no data URL"),
        (own(pictures=["/etc/hosts"]), "no data URL"),
        (own(extra=1), "unknown field 'extra'"),
        (file_of([{"role": "user", "content": "q", "tool_calls": [{}]}]), "calls a tool"),
    ],
)
def test_what_is_no_dialogue_is_refused_with_a_cause(data: bytes, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_file(data)
    assert expected in caught.value.cause
    assert caught.value.remedy
    assert "the body" not in caught.value.cause or expected == "messages"


def test_broken_pictures_are_refused() -> None:
    with pytest.raises(ImageError):
        from_file(own(pictures=["data:image/png;base64,AAAA"]))
    with pytest.raises(ImageError):
        from_file(own(pictures=["data:text/html;base64,AAAA"]))


def test_limits_of_size_and_count_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [{"role": "user", "text": "q"}] * (history_file.MAX_TURNS + 1)
    cases: list[tuple[type[LlavaError], bytes]] = [
        (TooLargeError, file_of({"format": "llava-dialogue", "version": 1, "turns": many})),
        (TooLargeError, b"[" * 10_000),
        (TooLargeError, b"[" * 1000 + b"]" * 1000),
        (ImageLimitError, own(pictures=[data_url()] * (history_file.MAX_PICTURES + 1))),
    ]
    for expected, data in cases:
        with pytest.raises(expected):
            from_file(data)
    monkeypatch.setattr(history_file, "MAX_CHARACTERS", 10)
    two = [{"role": "user", "text": "123456"}] * 2
    with pytest.raises(TooLargeError, match="12 characters"):
        from_file(file_of({"format": "llava-dialogue", "version": 1, "turns": two}))
    monkeypatch.setattr(history_file, "MAX_FILE_BYTES", 10)
    with pytest.raises(TooLargeError):
        from_file(own())
