"""One training sample as it stands in a data file -> `Record`: turns, pictures, and where it came from.

Place in the flow: between `formats` (which finds the samples of a file) and the sample encoder. Three
spellings are read, told apart by their keys: LLaVA's (`conversations` of `from` and `value`), ShareGPT's (the
same with other roles) and OpenAI's (`messages` of `role` and `content`, with pictures as parts of the
content). Whatever breaks the format is a DataError that says where; the original ignored it or failed with a
KeyError.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from llava.command import nearest
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError

Picture = str | bytes

_ROLES: Final = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
_OTHER_MEDIA: Final = ("video", "videos", "audio", "audios")
# How the base64 text of a JPEG, PNG, GIF or WEBP file begins; no path does.
_BASE64_PICTURE: Final = re.compile(r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/]{48}")
_ADDRESS: Final = re.compile(r"(https?|ftp|s3|gs|hdfs)://", re.I)


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before tokens and pixels."""

    id: str
    """The sample's own id, else the source's name and its number from 1."""
    turns: tuple[dict[str, str], ...]
    """`{"from": "human" | "gpt", "value": text}`, with `<image>` where a picture is."""
    images: tuple[Picture, ...]
    """One per `<image>`, in that order: absolute path, data URI, address, or the bytes of a picture file."""
    source: str
    """Name of the mixture's entry, or the file's stem."""
    where: str
    """File and place in it, as "x.jsonl line 12" or "x.json item 3"; counts from 1."""
    system: str = field(default="")
    """The sample's own system text; empty: the template's."""


class RecordSource(Protocol):
    """A file or folder of samples with random access; may be read in several processes at once."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of the content."""
        ...

    def __len__(self) -> int:
        """Return the number of samples, broken ones included."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Return one sample; raises DataError when it breaks the format."""
        ...

    def raw(self, index: int) -> object:
        """Return one sample as the file has it; raises DataError when it cannot be read at all."""
        ...

    def where(self, index: int) -> str:
        """Say which file and which place in it hold a sample."""
        ...


@dataclass(frozen=True)
class PictureFolder:
    """Where relative picture paths begin."""

    base: str
    """Absolute path of a folder."""
    is_limit: bool
    """Whether a path that leads out of the folder is refused; so it is wherever the user named the folder."""

    def locate(self, text: str, where: str) -> Picture:
        """Return what the image loader takes for a picture named in the data.

        Raises DataError for an empty name and for a path that leads out of a folder that is a limit.
        """
        if text[:5].lower() == "data:" or _ADDRESS.match(text):
            return text
        if _BASE64_PICTURE.match(text):
            return _decode(text, where)
        if text[:7].lower() == "file://":
            text = unquote(urlsplit(text).path)
        if not text.strip() or "\0" in text:
            raise DataError(
                f"the name of a picture is {text!r}",
                remedy="Give its path; leave `image` out of samples without one.",
                where=where,
            )
        path = os.path.normpath(os.path.join(self.base, text))
        if self.is_limit and os.path.commonpath([path, self.base]) != self.base:
            raise DataError(
                f"picture {text!r} is outside the picture folder {self.base}",
                remedy="Name a folder above all pictures as the picture folder.",
                where=where,
            )
        return path


class _Content(NamedTuple):
    """What one message holds: its text with `<image>` in it, and the pictures that came with it."""

    text: str
    pictures: list[Picture]


def record_of(raw: object, *, source: str, where: str, number: int, folder: PictureFolder) -> Record:
    """Read one sample.

    raw: as parsed from JSON, or a row of a table, where an absent value is None.
    number: of the sample in its source, from 1; part of its id when it has none.
    Raises DataError, with `where`, for anything that breaks the format, and when the number of `<image>` in
    the questions is not the number of pictures.
    """
    if not isinstance(raw, Mapping):
        raise DataError(
            f"a sample is of type {type(raw).__name__}", remedy="Write it as a JSON object.", where=where
        )
    for key in _OTHER_MEDIA:
        if raw.get(key):
            raise DataError(f"the sample has a {key}", remedy="Only pictures can be trained on.", where=where)
    system, turns, pictures = _conversation(_messages(raw, where), folder, where)
    named = _named_pictures(raw, folder, where)
    if named and pictures:
        raise DataError(
            "pictures are given both in the messages and beside them", remedy="Keep one.", where=where
        )
    record = Record(
        id=_id(raw, source, number),
        turns=turns,
        images=tuple(named or pictures),
        source=source,
        where=where,
        system=system,
    )
    _check_placeholders(record)
    return record


def _id(raw: Mapping[str, object], source: str, number: int) -> str:
    own = raw.get("id")
    return f"{source}-{number}" if own is None or own == "" else str(own)


def _messages(raw: Mapping[str, object], where: str) -> Sequence[object]:
    """Return the list of turns, whatever its key."""
    keys = [key for key in ("conversations", "messages") if raw.get(key) is not None]
    if len(keys) != 1:
        found = ", ".join(str(key) for key in raw) or "nothing"
        problem = "has both `conversations` and `messages`" if keys else "has no `conversations`"
        raise DataError(
            f"the sample {problem} (its keys: {found})",
            remedy="Give the turns as `conversations` or as `messages`.",
            where=where,
        )
    turns = raw[keys[0]]
    if isinstance(turns, str):  # a table's column of JSON text
        try:
            turns = json.loads(turns)
        except json.JSONDecodeError as error:
            raise DataError(f"`{keys[0]}` is text and not JSON: {error}", where=where) from error
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"`{keys[0]}` is {'empty' if turns == [] else 'of type ' + type(turns).__name__}",
            remedy="Give a list of turns.",
            where=where,
        )
    return turns


def _conversation(
    messages: Sequence[object], folder: PictureFolder, where: str
) -> tuple[str, tuple[dict[str, str], ...], list[Picture]]:
    """Read system text, turns and the pictures inside the turns."""
    system = ""
    turns: list[dict[str, str]] = []
    pictures: list[Picture] = []
    for place, message in enumerate(messages, start=1):
        role, content = _message(message, place, folder, where)
        if role != "system":
            turns.append({"from": role, "value": content.text})
            pictures += content.pictures
        elif place > 1 or content.pictures:
            problem = "has a picture" if content.pictures else f"is turn {place}"
            raise DataError(f"the system text {problem}", remedy="Put it first, as text.", where=where)
        else:
            system = content.text
    if not turns:
        raise DataError(
            "the sample has a system text and no turns", remedy="Give a question and an answer.", where=where
        )
    return system, tuple(turns), pictures


def _message(message: object, place: int, folder: PictureFolder, where: str) -> tuple[str, _Content]:
    """Read one turn of either spelling: role and content."""
    if not isinstance(message, Mapping):
        raise DataError(f"turn {place} is of type {type(message).__name__}, not an object", where=where)
    name = message.get("from") if message.get("from") is not None else message.get("role")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        hint = nearest(name, _ROLES) if isinstance(name, str) else ""
        raise DataError(
            f"turn {place} is from {name!r}",
            remedy=f"{hint}Known: {', '.join(_ROLES)}.",
            where=where,
        )
    content = message.get("value") if message.get("value") is not None else message.get("content")
    if isinstance(content, str):
        return role, _Content(content, [])
    if isinstance(content, list) and content:
        return role, _joined([_part(part, place, folder, where) for part in content])
    raise DataError(
        f"the text of turn {place} is {'empty' if content == [] else 'of type ' + type(content).__name__}",
        remedy="Give a text, or a list of parts of type text, image_url or image.",
        where=where,
    )


def _joined(parts: Sequence[_Content]) -> _Content:
    """Lay parts end to end, one a line, as LLaVA writes a picture and its question."""
    return _Content(
        "\n".join(part.text for part in parts), [picture for part in parts for picture in part.pictures]
    )


def _part(part: object, place: int, folder: PictureFolder, where: str) -> _Content:
    """Read one part of an OpenAI-style content; a picture without a source takes the next of `images`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return _Content(str(part["text"]), [])
    if isinstance(part, Mapping) and kind in ("image_url", "image"):
        source = part.get("image_url") if kind == "image_url" else part.get("image", part.get("path"))
        if isinstance(source, Mapping) and "url" in source:
            source = source["url"]
        if source is None and kind == "image":
            return _Content(DEFAULT_IMAGE_TOKEN, [])
        return _Content(DEFAULT_IMAGE_TOKEN, [_picture(source, folder, where)])
    shown = f"of type {kind!r}" if kind is not None else f"{part!r}"[:80]
    raise DataError(
        f"turn {place} holds a part {shown}",
        remedy="Use parts of type text (with `text`), image_url or image.",
        where=where,
    )


def _named_pictures(raw: Mapping[str, object], folder: PictureFolder, where: str) -> list[Picture]:
    """Return the pictures of `image` or `images`, each one picture or a list of them."""
    keys = [key for key in ("image", "images") if raw.get(key) is not None]
    if len(keys) > 1:
        raise DataError("the sample has both `image` and `images`", remedy="Keep one.", where=where)
    if not keys:
        return []
    named = raw[keys[0]]
    return [_picture(one, folder, where) for one in (named if isinstance(named, list) else [named])]


def _picture(value: object, folder: PictureFolder, where: str) -> Picture:
    """Read one picture: path, address, bytes, or a table's struct of `bytes` and `path`."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        value = data if data is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return folder.locate(value, where)
    raise DataError(
        f"a picture is given as {type(value).__name__}",
        remedy="Give a path, a data URI, bytes, or a list of these.",
        where=where,
    )


def _decode(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(f"the base64 text of a picture is broken: {error}", where=where) from error


def _check_placeholders(record: Record) -> None:
    """Hold that every picture has its place; the original trained on without saying anything."""
    counts = {"human": 0, "gpt": 0}
    for turn in record.turns:
        counts[turn["from"]] += turn["value"].count(DEFAULT_IMAGE_TOKEN)
    if counts["gpt"]:
        raise DataError(
            f"an answer holds {DEFAULT_IMAGE_TOKEN}",
            remedy="A picture belongs in a question; spell the word differently where it is text.",
            where=record.where,
        )
    if counts["human"] != len(record.images):
        raise DataError(
            f"the questions hold {counts['human']} {DEFAULT_IMAGE_TOKEN} for {len(record.images)} picture(s)",
            remedy=f"Write {DEFAULT_IMAGE_TOKEN} once for every picture, where it belongs.",
            where=record.where,
        )
