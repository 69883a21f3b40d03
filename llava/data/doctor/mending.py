"""A sample with faults -> the same sample without, where no doubt is left about what was meant; or nothing.

Used by `fix`. Pure. What is mended is checked again by `samples.check`; what still has an error is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.doctor.findings import KINDS
from llava.data.doctor.placeholders import MISSPELLED
from llava.data.doctor.samples import Sample, check, misspelled_keys, respelled
from llava.data.doctor.text_checks import mended_text

_ROLE_NAMES: Final = {
    "human": "human",
    "user": "human",
    "question": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "bot": "gpt",
    "model": "gpt",
    "answer": "gpt",
    "chatgpt": "gpt",
    "bard": "gpt",
    "bing": "gpt",
}
"""What is taken for a role, in lower case: the trainer's own names in any case, and what others write."""
_TEXTUAL: Final = ("text-surrogate", "text-control-character", "text-mojibake")

Turn = dict[str, object]


class Change(NamedTuple):
    """One thing that was done to a sample."""

    code: str
    """Of the finding that it settles."""
    what: str


class Mended(NamedTuple):
    """What became of a sample."""

    value: dict[str, object] | None
    """None: it was dropped."""
    changes: list[Change]


def mend(raw: object, rename_picture: Callable[[str], str] = lambda name: name) -> Mended:
    """Mend a sample; rename_picture gives the spelling on disk of a picture's name.

    The value is the very same mapping where there was nothing to do.
    """
    if not isinstance(raw, Mapping):
        return Mended(None, [Change("record-type", "dropped")])
    before = check(raw)
    changes: list[Change] = []
    value = _mended_keys(dict(raw), before, changes)
    _mend_pictures(value, before, changes, rename_picture)
    if before.faults:
        _mend_turns(value, before, changes)
    after = check(value) if changes else before
    bad = next((fault for fault in after.faults if KINDS[fault[0]].severity == "error"), None)
    if bad is not None:
        return Mended(None, [Change(bad[0], f"dropped: {bad[1]}")])
    return Mended(value if changes else dict(raw), changes)


def _mended_keys(value: dict[str, object], sample: Sample, changes: list[Change]) -> dict[str, object]:
    for wrong, right in misspelled_keys(value).items():
        changes.append(Change("key-misspelled", f"key {wrong!r} renamed {right!r}"))
    value = respelled(value)
    if sample.has("id-type"):
        value.pop("id")
        changes.append(Change("id-type", "id removed"))
    if sample.has("image-empty"):
        for key in ("image", "images"):
            if key in value and not _names(value[key]):
                value.pop(key)
                changes.append(Change("image-empty", f"key {key!r} removed"))
    if sample.has("image-keys") and _names(value["image"]) == _names(value["images"]):
        value.pop("images")
        changes.append(Change("image-keys", "key 'images' removed, which said the same"))
    return value


def _names(named: object) -> list[object]:
    several = named if isinstance(named, list) else [named]
    return [one for one in several if not (isinstance(one, str) and not one.strip())]


def _mend_pictures(
    value: dict[str, object], sample: Sample, changes: list[Change], rename: Callable[[str], str]
) -> None:
    """Spell pictures as they are on disk."""

    def renamed(name: object) -> object:
        if not isinstance(name, str):
            return name
        real = rename(name)
        if real != name:
            changes.append(Change("picture-case", f"{name!r} spelled {real!r}"))
        return real

    for key in ("image", "images"):
        named = value.get(key)
        if isinstance(named, list):
            value[key] = [renamed(name) for name in named]
        elif isinstance(named, str) and sample.images:
            value[key] = renamed(named)


def _mend_turns(value: dict[str, object], sample: Sample, changes: list[Change]) -> None:
    """Mend the turns in place; the value is left as it is where they cannot be told apart."""
    key = "conversations" if value.get("conversations") is not None else "messages"
    turns = value.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return
    mended: list[Turn] = [dict(turn) for turn in turns]
    num_before = len(changes)
    for turn in mended:
        _mend_role(turn, changes)
        _mend_value(turn, sample, changes)
    _mend_placeholders(mended, sample, changes)
    mended = _mend_order(mended, changes)
    if len(changes) > num_before:
        value[key] = mended


def _keys(turn: Turn) -> tuple[str, str]:
    """Return the keys of role and text, in the spelling of the turn."""
    role = "from" if turn.get("from") is not None or turn.get("role") is None else "role"
    return role, "value" if turn.get("value") is not None or turn.get("content") is None else "content"


def _side(turn: Turn) -> str | None:
    name = turn.get(_keys(turn)[0])
    return _ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def _text(turn: Turn) -> str | None:
    value = turn.get(_keys(turn)[1])
    return value if isinstance(value, str) else None


def _mend_role(turn: Turn, changes: list[Change]) -> None:
    key, name = _keys(turn)[0], turn.get(_keys(turn)[0])
    side = _side(turn)
    if side is not None and name not in ("human", "gpt", "user", "assistant"):
        turn[key] = side if key == "from" else {"human": "user", "gpt": "assistant"}[side]
        changes.append(Change("role-unknown", f"role {name!r} written {turn[key]!r}"))


def _mend_value(turn: Turn, sample: Sample, changes: list[Change]) -> None:
    key = _keys(turn)[1]
    value = turn.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        turn[key] = str(value)
        changes.append(Change("value-type", f"number {value} written as text"))
    if isinstance(value, str) and sample.has(*_TEXTUAL):
        text = mended_text(value)
        if text != value:
            turn[key] = text
            code = next(code for code in _TEXTUAL if sample.has(code))
            changes.append(Change(code, "characters mended"))


def _mend_placeholders(turns: list[Turn], sample: Sample, changes: list[Change]) -> None:
    questions = [turn for turn in turns if _side(turn) == "human" and _text(turn) is not None]
    if sample.has("placeholder-misspelled"):
        for turn in questions:
            turn[_keys(turn)[1]] = MISSPELLED.sub(DEFAULT_IMAGE_TOKEN, _text(turn) or "")
        changes.append(Change("placeholder-misspelled", f"written {DEFAULT_IMAGE_TOKEN}"))
    if sample.has("placeholder-in-answer"):
        for turn in turns:
            text = _text(turn)
            if _side(turn) == "gpt" and text is not None and DEFAULT_IMAGE_TOKEN in text:
                turn[_keys(turn)[1]] = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        changes.append(Change("placeholder-in-answer", f"{DEFAULT_IMAGE_TOKEN} removed"))
    num_places = sum((_text(turn) or "").count(DEFAULT_IMAGE_TOKEN) for turn in questions)
    if questions and sample.images and not num_places:
        first = questions[0]
        marks = f"{DEFAULT_IMAGE_TOKEN}\n" * len(sample.images)
        first[_keys(first)[1]] = marks + (_text(first) or "")
        changes.append(Change("picture-without-placeholder", f"{DEFAULT_IMAGE_TOKEN} put first"))


def _mend_order(turns: list[Turn], changes: list[Change]) -> list[Turn]:
    """Drop answers without a question, and everything from the first round that has no answer text."""
    system = turns[:1] if turns and turns[0].get(_keys(turns[0])[0]) == "system" else []
    turns = turns[len(system) :]
    if any(_side(turn) is None for turn in turns):
        return [*system, *turns]
    if turns and _side(turns[0]) == "gpt":
        turns = turns[1:]
        changes.append(Change("starts-with-answer", "the answer in front dropped"))
    for place, turn in enumerate(turns):
        text = _text(turn)
        is_empty = _side(turn) == "gpt" and text is not None and not text.strip()
        if is_empty and place % 2 == 1:
            code = "answer-blank" if text else "answer-empty"
            changes.append(Change(code, f"dropped from turn {len(system) + place} on"))
            turns = turns[: place - 1]
            break
    if turns and _side(turns[-1]) == "human" and len(turns) > 1:
        turns = turns[:-1]
        changes.append(Change("ends-with-question", "the question at the end dropped"))
    return [*system, *turns]
