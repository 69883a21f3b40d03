"""A sample as the file has it -> its conversation and pictures in one spelling, and all that is wrong.

After `reading`. The same three spellings are taken as by `llava.data.records`; where that stops at the first
fault, this notes it and goes on. `check` is pure: `fix` runs it again on what it mended.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from llava.command import nearest
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.doctor.findings import KINDS
from llava.data.doctor.placeholders import check_placeholders
from llava.data.doctor.text_checks import check_text

ROLES: Final = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
KNOWN_KEYS: Final = ("id", "image", "images", "conversations", "messages")
_QUIET_KEYS: Final = {"model", "source", "system"}
_SPELLINGS: Final = {
    "conversation": "conversations",
    "conversatons": "conversations",
    "conv": "conversations",
    "convs": "conversations",
    "message": "messages",
    "img": "image",
    "imgs": "images",
    "imge": "image",
    "iamge": "image",
    "imag": "image",
    "image_path": "image",
    "image_file": "image",
    "img_path": "image",
    "picture": "image",
    "_id": "id",
}
_TURN_KEYS: Final = ("from", "value", "role", "content")


@dataclass(slots=True)
class Turn:
    """One turn in the one spelling."""

    role: str
    """ "human", "gpt" or "system"; as written where it is not known."""
    text: str | None
    """None: it has none that can be used."""


@dataclass(slots=True)
class Sample:
    """One sample, and what is wrong with it."""

    id: str = ""
    turns: list[Turn] = field(default_factory=list)
    """System text left out."""
    system: str = ""
    images: list[str | bytes] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(code, detail), as in `findings.KINDS`."""
    unknown_keys: list[str] = field(default_factory=list)

    def fault(self, code: str, detail: str) -> None:
        """Note a fault."""
        self.faults.append((code, detail))

    @property
    def is_sound(self) -> bool:
        """Whether no fault is an error."""
        return not any(KINDS[code].severity == "error" for code, _ in self.faults)

    def has(self, *codes: str) -> bool:
        """Tell whether any of these faults was noted."""
        return any(code in codes for code, _ in self.faults)


def check(raw: object) -> Sample:
    """Read a sample and note everything that is wrong with it by itself."""
    sample = Sample()
    if not isinstance(raw, Mapping):
        sample.fault("record-type", f"the sample is {_named(raw)}")
        return sample
    fields = respelled(raw)
    for wrong, right in misspelled_keys(raw).items():
        sample.fault("key-misspelled", f"key {wrong!r} stands for {right!r}")
    known = {*KNOWN_KEYS, *_QUIET_KEYS}
    sample.unknown_keys = [str(key) for key in fields if key not in known]
    _check_id(fields, sample)
    turns, pictures = _conversation(fields, sample)
    _check_order(turns, sample)
    sample.images = _pictures(fields, sample) or pictures
    check_placeholders(sample.turns, sample)
    for turn in sample.turns:
        check_text(turn.text or "", sample, is_answer=turn.role == "gpt")
    return sample


def misspelled_keys(raw: Mapping[str, object]) -> dict[str, str]:
    """Return the keys that stand for a known one which the sample lacks."""
    has_turns = "conversations" in raw or "messages" in raw
    has_pictures = "image" in raw or "images" in raw
    found: dict[str, str] = {}
    for key in raw:
        plain = str(key).strip().lower()
        right = plain if plain in KNOWN_KEYS else _SPELLINGS.get(plain)
        if key in KNOWN_KEYS or right is None or right in raw or right in found.values():
            continue
        taken = has_turns if right in ("conversations", "messages") else has_pictures and right != "id"
        if not taken:
            found[str(key)] = right
    return found


def respelled(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the sample with misspelled keys replaced."""
    names = misspelled_keys(raw)
    return {names.get(str(key), str(key)): value for key, value in raw.items()}


def _named(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=True, default=repr)
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    kind = kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
    return f"{kind}: {shown[:60]}{'...' if len(shown) > 60 else ''}"


def _check_id(fields: Mapping[str, object], sample: Sample) -> None:
    own = fields.get("id")
    if own is None or own == "":
        sample.fault("id-missing", "the sample has no id")
    elif isinstance(own, bool) or not isinstance(own, str | int | float):
        sample.fault("id-type", f"the id is {_named(own)}")
    else:
        sample.id = str(own)


def _conversation(fields: Mapping[str, object], sample: Sample) -> tuple[list[Turn], list[str | bytes]]:
    """Read the turns into the sample; returns those that are whole objects, and the pictures inside them."""
    keys = [key for key in ("conversations", "messages") if fields.get(key) is not None]
    if len(keys) != 1:
        found = "both `conversations` and `messages`" if keys else "neither `conversations` nor `messages`"
        sample.fault("conversations-missing", f"the sample has {found}")
        return [], []
    turns = fields[keys[0]]
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except ValueError:
            turns = fields[keys[0]]
    if not isinstance(turns, list):
        sample.fault("conversations-type", f"`{keys[0]}` is {_named(turns)}")
        return [], []
    if not turns:
        sample.fault("conversations-empty", f"`{keys[0]}` is an empty list")
    pictures: list[str | bytes] = []
    for place, message in enumerate(turns, start=1):
        turn = _turn(message, place, sample, pictures)
        if turn is not None and turn.role == "system" and place == 1:
            sample.system = turn.text or ""
        elif turn is not None:
            sample.turns.append(turn)
    return sample.turns, pictures


def _turn(message: object, place: int, sample: Sample, pictures: list[str | bytes]) -> Turn | None:
    if not isinstance(message, Mapping):
        sample.fault("turn-type", f"turn {place} is {_named(message)}")
        return None
    for key in message:
        if key not in _TURN_KEYS:
            sample.unknown_keys.append(f"{key} (of a turn)")
    name = message.get("from") if message.get("from") is not None else message.get("role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if name is None:
        sample.fault("role-missing", f"turn {place} has no `from` (its keys: {', '.join(map(str, message))})")
    elif role is None or (role == "system" and place > 1):
        hint = nearest(name.lower(), ROLES).strip() if isinstance(name, str) and role is None else ""
        sample.fault("role-unknown", f"turn {place} is from {name!r}. {hint}".strip())
    value = message.get("value") if message.get("value") is not None else message.get("content")
    text = _text(value, place, sample, pictures)
    made = Turn(role or "", text)
    if text is not None and not text.strip() and role in ("human", "gpt"):
        side = "answer" if role == "gpt" else "question"
        sample.fault(f"{side}-{'blank' if text else 'empty'}", f"turn {place} is {text!r}")
    return made


def _text(value: object, place: int, sample: Sample, pictures: list[str | bytes]) -> str | None:
    if value is None:
        sample.fault("value-missing", f"turn {place} has no `value`")
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        parts = [_part(part, pictures) for part in value]
        whole = [part for part in parts if part is not None]
        if len(whole) == len(parts):
            return "\n".join(whole)
    sample.fault("value-type", f"the text of turn {place} is {_named(value)}")
    return None


def _part(part: Mapping[str, object], pictures: list[str | bytes]) -> str | None:
    """Return the text of one part of an OpenAI-style content; None for a part of another kind."""
    kind, text = part.get("type"), part.get("text")
    if kind == "text":
        return text if isinstance(text, str) else None
    if kind not in ("image_url", "image"):
        return None
    source = part.get("image_url") if kind == "image_url" else part.get("image", part.get("path"))
    if isinstance(source, Mapping):
        source = source.get("url")
    if isinstance(source, str | bytes):
        pictures.append(source)
        return DEFAULT_IMAGE_TOKEN
    return DEFAULT_IMAGE_TOKEN if source is None and kind == "image" else None


def _check_order(turns: list[Turn], sample: Sample) -> None:
    """Check that human and gpt alternate, and that something is answered."""
    roles = [turn.role for turn in turns if turn.role in ("human", "gpt")]
    if not roles or len(roles) < len(turns) or sample.has("turn-type"):
        return
    if "gpt" not in roles:
        sample.fault("answer-none", f"all of the {len(roles)} turn(s) are questions")
        return
    if roles[0] == "gpt":
        sample.fault("starts-with-answer", "the first turn is from gpt")
    if roles[-1] == "human":
        sample.fault("ends-with-question", f"turn {len(roles)}, the last, is from human")
    for place, (one, two) in enumerate(itertools.pairwise(roles), start=2):
        if one == two:
            sample.fault("roles-not-alternating", f"turn {place} is from {two}, as is the one before it")
            return


def _pictures(fields: Mapping[str, object], sample: Sample) -> list[str | bytes]:
    """Return the pictures that are named beside the conversation."""
    keys = [key for key in ("image", "images") if fields.get(key) is not None]
    if len(keys) > 1:
        sample.fault("image-keys", "the sample has both `image` and `images`")
    if not keys:
        return []
    named = fields[keys[0]]
    pictures: list[str | bytes] = []
    for one in named if isinstance(named, list) else [named]:
        value = one
        if isinstance(value, Mapping):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str) and not value.strip():
            sample.fault("image-empty", f"`{keys[0]}` is {value!r}")
        elif isinstance(value, str | bytes):
            pictures.append(value)
        else:
            sample.fault("image-type", f"`{keys[0]}` is {_named(one)}")
    return pictures
