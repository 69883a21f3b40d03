"""Questions and answers about a generated scene.

Last step of the generated data: everything is derived from the annotation. Answers are short and always
spelled the same way; a description is a full sentence. A question is only asked where one answer is right.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from llava.demo.phrases import (
    ANIMAL,
    ANIMALS,
    COLOR,
    COUNT_ALL,
    COUNT_OBJECTS,
    COUNT_SOME,
    DESCRIBE,
    GREETING_ANSWER,
    GREETINGS,
    ICON,
    IDENTITY,
    IDENTITY_ANSWER,
    NO_PICTURE_ANSWER,
    NUMBER,
    NUMBER_WORDS,
    PLACES,
    POSITION,
    PRESENCE,
    SHAPE,
    UNKNOWN,
    UNKNOWN_ANSWER,
    WHAT_AT,
    WHAT_IS_THIS,
)
from llava.demo.scenes import CELLS, COLORS, ICONS, NUMBERS, SHAPES, Scene, Thing


class QA(NamedTuple):
    """A question of one of the kinds in QUESTION_KINDS, and its one right answer."""

    kind: str
    question: str
    answer: str


def an(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(shape: str) -> str:
    """Return a shape's plural."""
    return shape + ("es" if shape.endswith("s") else "s")


def describe(thing: Thing) -> str:
    """Return a noun phrase, such as "a red circle" or "the number 47"."""
    if thing.kind == "number":
        return f"the number {thing.name}"
    return an(f"{thing.color} {thing.name}" if thing.color else thing.name)


def caption(scene: Scene) -> str:
    """Return one sentence that names everything in reading order, with its place."""
    parts = [f"{describe(thing)} {PLACES[thing.cell]}" for thing in scene.things]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"There is {listed}."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _color(scene: Scene, rng: random.Random) -> QA | None:
    thing = _pick(rng, _unique(scene, lambda thing: thing.name))
    if thing is None:
        return None
    return QA("color", rng.choice(COLOR).format(shape=thing.name), _sentence(thing.color or ""))


def _shape(scene: Scene, rng: random.Random) -> QA | None:
    thing = _pick(rng, _unique(scene, lambda thing: thing.color or ""))
    if thing is None:
        return None
    return QA("shape", rng.choice(SHAPE).format(color=thing.color), _sentence(thing.name))


def _count_all(scene: Scene, rng: random.Random) -> QA:
    phrases = COUNT_ALL if scene.icon else COUNT_ALL + COUNT_OBJECTS
    return QA("count_all", rng.choice(phrases), f"{NUMBER_WORDS[len(scene.shapes)]}.")


def _count_shape(scene: Scene, rng: random.Random) -> QA:
    present = sorted({thing.name for thing in scene.shapes})
    shape = rng.choice(present) if present and rng.random() < 0.75 else rng.choice(SHAPES)
    number = sum(thing.name == shape for thing in scene.shapes)
    return QA("count_shape", rng.choice(COUNT_SOME).format(group=plural(shape)), f"{NUMBER_WORDS[number]}.")


def _count_color(scene: Scene, rng: random.Random) -> QA:
    present = sorted({thing.color or "" for thing in scene.shapes})
    color = rng.choice(present) if present and rng.random() < 0.75 else rng.choice(list(COLORS))
    number = sum(thing.color == color for thing in scene.shapes)
    group = f"{color} {rng.choice(('shapes', 'objects'))}"
    return QA("count_color", rng.choice(COUNT_SOME).format(group=group), f"{NUMBER_WORDS[number]}.")


def _position(scene: Scene, rng: random.Random) -> QA | None:
    if scene.icon and rng.random() < 0.3:
        return QA(
            "position", rng.choice(POSITION).format(thing=scene.icon.name), _sentence(CELLS[scene.icon.cell])
        )
    if scene.number and rng.random() < 0.2:
        return QA(
            "position", rng.choice(POSITION).format(thing="number"), _sentence(CELLS[scene.number.cell])
        )
    pairs = _unique(scene, lambda thing: f"{thing.color} {thing.name}")
    thing = _pick(rng, pairs)
    if thing is None:
        return None
    name = f"{thing.color} {thing.name}"
    if rng.random() < 0.3 and thing in _unique(scene, lambda other: other.name):
        name = thing.name
    return QA("position", rng.choice(POSITION).format(thing=name), _sentence(CELLS[thing.cell]))


def _presence(scene: Scene, rng: random.Random) -> QA:
    """Half yes, half no; most of the "no" are near misses: the shape or the colour is there, not the pair."""
    names, colors = {thing.name for thing in scene.shapes}, {thing.color for thing in scene.shapes}
    pairs = {(thing.color, thing.name) for thing in scene.shapes}
    is_yes = rng.random() < 0.5
    draw = rng.random()
    if draw < 0.1:
        icon = (
            scene.icon.name
            if scene.icon and is_yes
            else rng.choice([i for i in ICONS if scene.icon is None or i != scene.icon.name])
        )
        return _yes_no(rng, an(icon), is_yes=scene.icon is not None and icon == scene.icon.name)
    if draw < 0.15:
        return _yes_no(rng, "a number", is_yes=scene.number is not None)
    if draw < 0.3:
        shapes = [shape for shape in SHAPES if (shape in names) == is_yes]
        return (
            _yes_no(rng, an(rng.choice(shapes)), is_yes=is_yes)
            if shapes
            else _yes_no(rng, "a circle", is_yes="circle" in names)
        )
    if is_yes and pairs:
        color, shape = rng.choice(sorted((str(color), name) for color, name in pairs))
        return _yes_no(rng, an(f"{color} {shape}"), is_yes=True)
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in pairs]
    near = [pair for pair in absent if pair[0] in colors or pair[1] in names]
    color, shape = rng.choice(near if near and rng.random() < 0.8 else absent)
    return _yes_no(rng, an(f"{color} {shape}"), is_yes=False)


def _yes_no(rng: random.Random, thing: str, *, is_yes: bool) -> QA:
    return QA("presence", rng.choice(PRESENCE).format(thing=thing), "Yes." if is_yes else "No.")


def _what_at(scene: Scene, rng: random.Random) -> QA:
    cell = rng.choice(scene.things).cell if rng.random() < 0.85 else rng.randrange(len(CELLS))
    found = next((thing for thing in scene.things if thing.cell == cell), None)
    answer = _sentence(describe(found)) if found else "Nothing."
    return QA("what_at", rng.choice(WHAT_AT).format(place=PLACES[cell]), answer)


def _number(scene: Scene, rng: random.Random) -> QA | None:
    if scene.number:
        return QA("number", rng.choice(NUMBER), f"{scene.number.name}.")
    return QA("number", rng.choice(NUMBER), "There is no number.") if rng.random() < 0.1 else None


def _icon(scene: Scene, rng: random.Random) -> QA | None:
    if scene.icon:
        phrases = ICON + ANIMAL if scene.icon.name in ANIMALS else ICON
        return QA("icon", rng.choice(phrases), _sentence(an(scene.icon.name)))
    return QA("icon", rng.choice(ICON), "There is no icon.") if rng.random() < 0.1 else None


def _describe(scene: Scene, rng: random.Random) -> QA:
    return QA("describe", rng.choice(DESCRIBE), caption(scene))


def _what_is_this(scene: Scene, rng: random.Random) -> QA:
    answer = _sentence(describe(scene.things[0])) if len(scene.things) == 1 else caption(scene)
    return QA("what_is_this", rng.choice(WHAT_IS_THIS), answer)


def _absent(scene: Scene, rng: random.Random) -> QA:
    """Ask for a property of something that is not there."""
    names = {thing.name for thing in scene.things}
    shape = rng.choice([shape for shape in SHAPES if shape not in names])
    question = rng.choice(rng.choice((COLOR, POSITION))).format(shape=shape, thing=shape)
    return QA("absent", question, f"There is no {shape}.")


def _small_talk(scene: Scene, rng: random.Random) -> QA:  # noqa: ARG001 - one signature for all kinds
    return small_talk(rng)


def small_talk(rng: random.Random) -> QA:
    """Return a question that has nothing to do with a generated scene."""
    phrases, answer = rng.choice(
        (
            (GREETINGS, GREETING_ANSWER),
            (IDENTITY, IDENTITY_ANSWER),
            (UNKNOWN, UNKNOWN_ANSWER),
            (UNKNOWN, UNKNOWN_ANSWER),
        )
    )
    return QA("small_talk", rng.choice(phrases), answer)


QUESTION_KINDS: Final[dict[str, Callable[[Scene, random.Random], QA | None]]] = {
    "color": _color,
    "shape": _shape,
    "count_all": _count_all,
    "count_shape": _count_shape,
    "count_color": _count_color,
    "position": _position,
    "presence": _presence,
    "what_at": _what_at,
    "number": _number,
    "icon": _icon,
    "describe": _describe,
    "what_is_this": _what_is_this,
    "absent": _absent,
    "small_talk": _small_talk,
}
"""Kind -> function that asks about a scene, or returns None where the scene has no such thing."""


def ask(scene: Scene, kind: str, rng: random.Random) -> QA | None:
    """Return a question of a kind about a scene, or None where none has one right answer."""
    return QUESTION_KINDS[kind](scene, rng)


def without_picture(scene: Scene, rng: random.Random) -> QA:
    """Return what is asked in a conversation without a picture: small talk, or a question about one."""
    if rng.random() < 0.4:
        return small_talk(rng)
    kind = rng.choice([kind for kind in QUESTION_KINDS if kind != "small_talk"])
    qa = ask(scene, kind, rng) or _what_is_this(scene, rng)
    return QA("no_picture", vary(qa.question, rng), NO_PICTURE_ANSWER)


def vary(question: str, rng: random.Random) -> str:
    """Return the question as people type it: now and then without capital letter or final mark."""
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.")
    return question


def all_texts() -> list[str]:
    """Return every fixed text, with each name in its place once: what a tokenizer should know well."""
    things = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    fills: list[tuple[Sequence[str], str, Sequence[str]]] = [
        (COLOR, "shape", SHAPES),
        (SHAPE, "color", list(COLORS)),
        (COUNT_SOME, "group", [plural(shape) for shape in SHAPES] + [f"{color} shapes" for color in COLORS]),
        (POSITION, "thing", [*things, *SHAPES, *ICONS, "number"]),
        (PRESENCE, "thing", [an(thing) for thing in (*things, *SHAPES, *ICONS)]),
        (WHAT_AT, "place", PLACES),
    ]
    texts = [
        phrase.format(**{field: value})
        for phrases, field, values in fills
        for phrase in phrases
        for value in values
    ]
    for phrases in (
        COUNT_ALL,
        COUNT_OBJECTS,
        NO_PICTURE_ANSWER,
        NUMBER,
        ICON,
        DESCRIBE,
        WHAT_IS_THIS,
        GREETINGS,
        IDENTITY,
        UNKNOWN,
    ):
        texts += phrases
    texts += [
        GREETING_ANSWER,
        IDENTITY_ANSWER,
        UNKNOWN_ANSWER,
        "Yes.",
        "No.",
        "Nothing.",
        "There is no icon.",
    ]
    return texts + short_answers()


def short_answers() -> list[str]:
    """Return every answer that names one thing, colour, place or number."""
    things = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    answers = [_sentence(name) for name in (*SHAPES, *COLORS, *CELLS)]
    answers += [_sentence(an(name)) for name in (*ICONS, *things)]
    return answers + [f"{word}." for word in NUMBER_WORDS] + [f"{number}." for number in NUMBERS]


def _unique(scene: Scene, key: Callable[[Thing], str]) -> list[Thing]:
    counts = Counter(key(thing) for thing in scene.shapes)
    return [thing for thing in scene.shapes if counts[key(thing)] == 1]


def _pick(rng: random.Random, things: Sequence[Thing]) -> Thing | None:
    return rng.choice(things) if things else None
