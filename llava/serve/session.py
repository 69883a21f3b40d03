"""One dialogue about pictures: its messages, its pictures, and the transcript file it can be kept in.

Knows neither terminal nor engine; `terminal` shows it, an engine answers its `turns()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llava.engine.request import Request, SamplingParams
from llava.errors import DataError, FileError, UsageError
from llava.files import read_json, write_json
from llava.templates import Turn

if TYPE_CHECKING:
    from PIL.Image import Image

TRANSCRIPT_VERSION = 1


@dataclass(frozen=True)
class Picture:
    """A picture that is talked about."""

    source: str
    """Path or URL, as it was given."""
    image: Image
    """The decoded picture, RGB."""

    def __str__(self) -> str:
        return f"{Path(self.source).name} ({self.image.width}x{self.image.height})"


OpenPicture = Callable[[str], Picture]
"""Loads the picture of a path or URL; raises ImageError."""


@dataclass(frozen=True)
class Message:
    """What one side said."""

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()
    """The pictures that came with a question."""
    is_stopped: bool = False
    """Whether the answer was interrupted."""

    def turn(self) -> Turn:
        """Return the message as the templates take it."""
        if self.role == "assistant":
            return Turn("assistant", (self.text,))
        return Request.of_question(self.text, [picture.image for picture in self.pictures]).turns[0]


@dataclass
class Session:
    """A dialogue in progress."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    waiting: list[Picture] = field(default_factory=list)
    """Pictures that go with the next question."""
    messages: list[Message] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """All pictures of the dialogue in order, those that still wait last."""
        return [*(picture for message in self.messages for picture in message.pictures), *self.waiting]

    def request(self, question: str) -> Request:
        """Return the request that asks `question` next; the dialogue itself does not change."""
        messages = [*self.messages, Message("user", question, tuple(self.waiting))]
        images = [picture.image for message in messages for picture in message.pictures]
        return Request(
            turns=tuple(message.turn() for message in messages), images=images, sampling=self.sampling
        )

    def add(self, question: str, answer: str, *, is_stopped: bool = False) -> None:
        """Keep a question and what was answered, without control text; waiting pictures go with it."""
        self.messages += [
            Message("user", question, tuple(self.waiting)),
            Message("assistant", answer, is_stopped=is_stopped),
        ]
        self.waiting = []

    def undo(self) -> str | None:
        """Forget the last question with its answer and return it; its pictures wait again."""
        if not self.messages:
            return None
        question, _ = self.messages[-2:]
        self.messages = self.messages[:-2]
        self.waiting = [*question.pictures, *self.waiting]
        return question.text

    def reset(self) -> None:
        """Forget everything said; all pictures wait for the next question."""
        self.waiting, self.messages = self.pictures, []

    def change_pictures(self, pictures: Iterable[Picture]) -> None:
        """Begin a new dialogue about other pictures."""
        self.waiting, self.messages = list(pictures), []

    def set(self, assignments: Iterable[str]) -> None:
        """Change sampling parameters by `name=value` texts, all or none; raises UsageError, ConfigError."""
        changes = dict(parse_setting(text) for text in assignments)
        self.sampling = replace(self.sampling, **changes)  # type: ignore[arg-type]

    def save(self, path: Path, *, model: str, template: str) -> None:
        """Write the transcript, atomically; raises FileError when it cannot be written."""
        transcript = {
            "format_version": TRANSCRIPT_VERSION,
            "model": model,
            "template": template,
            "sampling": self.sampling.to_dict(),
            "messages": [_to_record(message) for message in self.messages],
            "waiting_images": [_location(picture.source) for picture in self.waiting],
        }
        if not path.parent.is_dir():
            raise FileError(f"{path.parent} is no folder", remedy="Give another path.")
        try:
            write_json(path, transcript)
        except OSError as error:
            raise FileError(
                f"{path} cannot be written: {error.strerror}", remedy="Give another path."
            ) from error

    def load(self, path: Path, open_picture: OpenPicture) -> None:
        """Continue a transcript; nothing changes unless all of it, pictures included, can be read.

        Raises FileError, DataError, ConfigError, ImageError.
        """
        loaded = _read_transcript(path, open_picture)
        self.sampling, self.waiting, self.messages = loaded.sampling, loaded.waiting, loaded.messages


def parse_setting(text: str) -> tuple[str, object]:
    """Return (name, value) of a `name=value` text; raises UsageError naming what can be set."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in _PARSERS:
        raise UsageError(
            f"cannot set {text!r}", remedy=f"Write NAME=VALUE with one of: {', '.join(_PARSERS)}."
        )
    try:
        return name, _PARSERS[name](value.strip())
    except ValueError:
        raise UsageError(f"{name} cannot be {value.strip()!r}", remedy="Give a number.") from None


def _optional_int(text: str) -> int | None:
    return None if text.lower() in ("", "none") else int(text)


_PARSERS: dict[str, Callable[[str], object]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "max_new_tokens": int,
    "seed": _optional_int,
}


def _location(source: str) -> str:
    """Make a path absolute, so that a transcript can be continued from another directory."""
    return source if "://" in source else str(Path(source).absolute())


def _to_record(message: Message) -> dict[str, object]:
    record: dict[str, object] = {"role": message.role, "text": message.text}
    if message.pictures:
        record["images"] = [_location(picture.source) for picture in message.pictures]
    if message.is_stopped:
        record["is_stopped"] = True
    return record


def _read_transcript(path: Path, open_picture: OpenPicture) -> Session:
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format_version") != TRANSCRIPT_VERSION:
        raise DataError(
            f"{path} is not a transcript of format version {TRANSCRIPT_VERSION}",
            remedy="Give a file of /save.",
        )
    try:
        messages = [_from_record(record, open_picture) for record in value["messages"]]
        waiting = [open_picture(source) for source in value["waiting_images"]]
        sampling = SamplingParams(**{**value["sampling"], "stop": tuple(value["sampling"]["stop"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is a broken transcript: {error!r}", remedy="Give a file of /save."
        ) from error
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"{path}: questions and answers do not alternate", remedy="Give a file of /save.")
    return Session(sampling=sampling, waiting=waiting, messages=messages)


def _from_record(record: dict[str, object], open_picture: OpenPicture) -> Message:
    role, text, sources = record["role"], record["text"], record.get("images", [])
    if role not in ("user", "assistant") or not isinstance(text, str) or not isinstance(sources, list):
        raise ValueError(f"message {record!r}")
    pictures = tuple(open_picture(str(source)) for source in sources)
    return Message(role, text, pictures, is_stopped=record.get("is_stopped") is True)


def open_picture(source: str, *, allow_url: bool, on_notice: Callable[[str], None]) -> Picture:
    """Load the picture of a path, data URI or (where allowed) URL; raises ImageError."""
    from llava.processing.images import load_image

    is_text = "://" in source or source.startswith("data:")
    image = load_image(
        source if is_text else Path(os.path.expanduser(source)), allow_url=allow_url, on_notice=on_notice
    )
    return Picture(source, image)
