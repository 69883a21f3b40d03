"""Dialogues as files: download, and upload of what may be anything.

    {"format": "llava-dialogue", "version": 1, "turns": [{role, text, pictures, mode, model, is_error}]}

An upload may also be OpenAI's chat messages: a list, or an object with `messages`. Nothing of a file is
believed: sizes, counts, types, roles, and every picture is decoded.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from llava.errors import ImageLimitError, LlavaError, RequestError, TooLargeError
from llava.processing.fetch import fetch_picture
from llava.processing.formats import picture_format
from llava.processing.images import load_image
from llava.processing.sources import read_source
from llava.serve import fields
from llava.serve.http.strict_json import parse_strictly
from llava.serve.openai.body import ChatMessage, ImagePart, read_body
from llava.serve.web.history import LIMITS, Dialogue, Role, WebTurn
from llava.serve.web.pictures import check_mode

FORMAT: Final = "llava-dialogue"
VERSION: Final = 1
MAX_FILE_BYTES: Final = 64 << 20
MAX_TURNS: Final = 1000
MAX_PICTURES: Final = 64
"""Of a file. What one request may hold is another, smaller number."""
MAX_CHARACTERS: Final = 500_000
_MAX_MODEL_CHARS: Final = 512
_FIELDS: Final = frozenset({"role", "text", "pictures", "mode", "model", "is_error"})


def to_json(dialogue: Dialogue) -> dict[str, Any]:
    """Return the dialogue as JSON holds it."""
    turns = [
        {
            "role": turn.role,
            "text": turn.text,
            "pictures": list(turn.pictures),
            "mode": turn.mode,
            "model": turn.model,
            "is_error": turn.is_error,
        }
        for turn in dialogue.turns
    ]
    return {"format": FORMAT, "version": VERSION, "turns": turns}


def from_file(data: bytes) -> Dialogue:
    """Read an uploaded file, ours or OpenAI's messages.

    Raises RequestError for what is no dialogue, TooLargeError for one over a limit, ImageError and
    ImageLimitError for its pictures.
    """
    if len(data) > MAX_FILE_BYTES:
        raise TooLargeError(
            f"the file has {len(data) / 2**20:.1f} MiB, over the limit of {MAX_FILE_BYTES >> 20}",
            remedy="Take large pictures out of it.",
        )
    try:
        value = parse_strictly(data)
    except LlavaError as error:
        raise type(error)(error.cause.replace("the body", "the file"), remedy=_REMEDY) from None
    return from_json(value)


_REMEDY: Final = "Upload a file that this page wrote, or OpenAI's chat messages."


def from_json(value: object) -> Dialogue:
    """Check parsed JSON and return its dialogue; raises as `from_file`."""
    if isinstance(value, Mapping) and "format" in value:
        turns = _own_turns(value)
    else:
        turns = _turns_of_messages(value.get("messages") if isinstance(value, Mapping) else value)
    _check_order(turns)
    num_characters = sum(len(turn.text) for turn in turns)
    if num_characters > MAX_CHARACTERS:
        raise TooLargeError(
            f"the texts have {num_characters} characters", remedy=f"At most {MAX_CHARACTERS} are taken."
        )
    if sum(len(turn.pictures) for turn in turns) > MAX_PICTURES:
        raise ImageLimitError("too many pictures in the file", remedy=f"At most {MAX_PICTURES} are taken.")
    return Dialogue(
        tuple(
            WebTurn(
                turn.role,
                turn.text,
                tuple(_checked_picture(url, number) for url in turn.pictures),
                turn.mode,
                turn.model,
                turn.is_error,
            )
            for number, turn in enumerate(turns, start=1)
        )
    )


def _own_turns(value: Mapping[str, Any]) -> list[WebTurn]:
    if value["format"] != FORMAT:
        raise RequestError("the file is no dialogue of this page", remedy=_REMEDY)
    if value.get("version") != VERSION or isinstance(value.get("version"), bool):
        raise RequestError(
            f"the file is of version {str(value.get('version'))[:20]!r}",
            remedy=f"This page reads version {VERSION}; use the release that wrote it.",
        )
    turns = _listed(value.get("turns"), "turns")
    return [_own_turn(turn, number) for number, turn in enumerate(turns, start=1)]


def _listed(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{name} is no list", remedy=_REMEDY)
    if len(value) > MAX_TURNS:
        raise TooLargeError(f"the dialogue has {len(value)} turns", remedy=f"At most {MAX_TURNS} are taken.")
    return value


def _own_turn(value: object, number: int) -> WebTurn:
    try:
        turn = fields.as_object(value)
        if set(turn) - _FIELDS:
            raise RequestError(
                f"unknown field {sorted(set(turn) - _FIELDS)[0][:40]!r}", remedy="Take it out."
            )
        role = fields.text(turn, "role", max_length=20)
        is_error = turn.get("is_error", False)
        if not isinstance(is_error, bool):
            raise RequestError("is_error is neither true nor false", remedy="Write one of them.")
        pictures = turn.get("pictures", [])
        if not isinstance(pictures, list) or not all(isinstance(url, str) for url in pictures):
            raise RequestError("pictures is no list of texts", remedy="Give a list of data URLs.")
        return WebTurn(
            _role(role),
            fields.text(turn, "text", max_length=MAX_CHARACTERS),
            tuple(pictures),
            check_mode(fields.text(turn, "mode", default="Default", max_length=20)),
            fields.text(turn, "model", default="", max_length=_MAX_MODEL_CHARS),
            is_error,
        )
    except LlavaError as error:
        raise RequestError(f"turn {number}: {error.cause}", remedy=error.remedy or _REMEDY) from None


def _role(name: str) -> Role:
    if name == "user":
        return "user"
    if name == "assistant":
        return "assistant"
    raise RequestError(f"the role is {name!r}", remedy="It is user or assistant.")


def _turns_of_messages(messages: object) -> list[WebTurn]:
    """Read OpenAI's messages: system text opens the first question, as in the API."""
    body = read_body({"messages": _listed(messages, "messages")})
    system, turns = "", []
    for number, message in enumerate(body.messages, start=1):
        if message.tool_calls:
            raise RequestError(f"message {number} calls a tool", remedy="Tools are not known here.")
        turn = _turn_of_message(message)
        if message.role in ("system", "developer"):
            system += turn.text + "\n\n"
            continue
        if turn.role == "user" and system:
            turn = WebTurn("user", system + turn.text, turn.pictures)
            system = ""
        turns.append(turn)
    return turns


def _turn_of_message(message: ChatMessage) -> WebTurn:
    parts = message.content if isinstance(message.content, list) else []
    text = message.content if isinstance(message.content, str) else ""
    text += "\n".join(part.text for part in parts if not isinstance(part, ImagePart))
    urls = tuple(part.image_url.url for part in parts if isinstance(part, ImagePart))
    return WebTurn("assistant" if message.role == "assistant" else "user", text, urls)


def _check_order(turns: list[WebTurn]) -> None:
    previous = ""
    for number, turn in enumerate(turns, start=1):
        is_misplaced = turn.role == "assistant" and previous != "user"
        if is_misplaced or (turn.role == "assistant" and turn.pictures):
            fault = "answers no question" if is_misplaced else "is an answer with a picture"
            raise RequestError(f"turn {number} {fault}", remedy=_REMEDY)
        if turn.role == "user" and (turn.is_error or not (turn.text.strip() or turn.pictures)):
            raise RequestError(f"turn {number} is an empty or failed question", remedy=_REMEDY)
        previous = turn.role


def _checked_picture(url: str, number: int) -> str:
    """Return the data URL with its true type, once the picture was decoded."""
    if url[:5].lower() != "data:":
        raise RequestError(f"a picture of turn {number} is no data URL", remedy="Put the picture itself in.")
    data, _ = read_source(url, LIMITS, allow_url=False, allow_path=False, fetch=fetch_picture)
    load_image(data, limits=LIMITS)
    kind = (picture_format(data) or "png").lower()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
