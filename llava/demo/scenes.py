"""Scenes for the embedded model: what is in a picture, before it is drawn or asked about.

First step of the generated data: a `Scene` is the symbolic annotation (things, colours, cells of a 3 x 3
grid) plus how it is drawn; `drawing.py` turns it into pixels and `questions.py` into questions with answers.
Training and held-out scenes are split by a hash of the annotation, so that no annotation occurs in both.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 15),
    "yellow": (245, 220, 30),
    "green": (35, 155, 55),
    "blue": (35, 75, 220),
    "purple": (130, 40, 165),
    "pink": (250, 135, 190),
    "black": (20, 20, 22),
}
CELLS = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
ICONS = (
    *("cat", "dog", "fish", "bird", "butterfly", "frog", "apple", "banana", "car", "airplane"),
    *("house", "tree", "flower", "sun", "moon", "umbrella", "book", "key", "rocket", "ball"),
    *("anchor", "balloon", "bee", "bell", "boat", "bulb", "cactus", "cake", "camera"),
    *("carrot", "cherry", "clock", "crab", "crown", "diamond", "dice", "donut", "dress"),
    *("drum", "fire", "flag", "ghost", "gift", "grapes", "guitar", "hat", "ladybug"),
    *("lion", "lock", "lollipop", "magnet", "mushroom", "octopus", "panda", "pencil", "penguin"),
    *("phone", "pig", "pineapple", "pizza", "pumpkin", "rabbit", "rainbow", "robot", "shoe"),
    *("television", "train", "trophy", "truck", "turtle", "watermelon", "whale"),
)
NUMBERS = range(100)

Kind = Literal["shape", "number", "icon"]
Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class Mix:
    """How often a picture has a number and an icon."""

    number: float = 0.25
    icon: float = 0.25


USUAL = Mix()
"""The mix of the pictures that accuracy is measured on."""

HELD_OUT_SHARE = 10
"""One annotation in this many is held out."""


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. `name` is a shape, an icon's name or a number in digits."""

    kind: Kind
    name: str
    color: str | None
    """A name of COLORS for shapes; None for numbers and icons."""
    cell: int
    """Index into CELLS."""
    center: tuple[float, float]
    """Of the drawing, as a share of the picture's width and height."""
    size: float
    """Side of the box around the drawing, as a share of the picture's shorter third."""
    angle: float
    """Rotation in degrees."""


@dataclass(frozen=True)
class Scene:
    """A picture to draw: size in pixels, background colours, things in reading order."""

    seed: int
    width: int
    height: int
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Colours of the two ends of a gradient; equal for a plain background."""
    noise: float
    """Standard deviation of the pixel noise, in units of 0..255."""
    things: tuple[Thing, ...]

    @property
    def shapes(self) -> list[Thing]:
        """The coloured shapes, in reading order."""
        return [thing for thing in self.things if thing.kind == "shape"]

    @property
    def number(self) -> Thing | None:
        """The number in the picture, if there is one."""
        return next((thing for thing in self.things if thing.kind == "number"), None)

    @property
    def icon(self) -> Thing | None:
        """The icon in the picture, if there is one."""
        return next((thing for thing in self.things if thing.kind == "icon"), None)

    @property
    def annotation(self) -> str:
        """What is where, without anything about how it is drawn."""
        return "; ".join(
            " ".join(filter(None, (thing.color, thing.name, "at", CELLS[thing.cell])))
            for thing in self.things
        )

    @property
    def split(self) -> Split:
        """Which side the annotation falls on: a property of the annotation alone."""
        digest = hashlib.blake2b(self.annotation.encode(), digest_size=8).digest()
        return "held-out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


def make_scene(seed: int, split: Split, mix: Mix = USUAL) -> Scene:
    """Return the scene of a seed: the first one from its random stream that falls on the wanted side."""
    rng = random.Random(f"scene {split} {seed}")
    while True:
        scene = _random_scene(rng, seed, mix)
        if scene.split == split:
            return scene


def _random_scene(rng: random.Random, seed: int, mix: Mix) -> Scene:
    width, height = _random_canvas(rng)
    num_shapes = rng.choices((0, 1, 2, 3, 4), weights=(0.06, 0.22, 0.26, 0.24, 0.22))[0]
    kinds: list[Kind] = ["shape"] * num_shapes
    if rng.random() < mix.number or (num_shapes == 0 and rng.random() < 0.4):
        kinds.append("number")
    if rng.random() < mix.icon or not kinds:
        kinds.append("icon")
    cells = rng.sample(range(9), len(kinds))
    if len(kinds) == 1 and rng.random() < 0.4:
        cells = [CELLS.index("center")]
    things = [
        _random_thing(rng, kind, cell, is_alone=len(kinds) == 1)
        for kind, cell in zip(kinds, cells, strict=True)
    ]
    _repeat_some(rng, things)
    things.sort(key=lambda thing: thing.cell)
    return Scene(
        seed=seed,
        width=width,
        height=height,
        background=_random_background(rng, things),
        noise=rng.choice((0.0, 0.0, rng.uniform(2, 14))),
        things=tuple(things),
    )


def _random_canvas(rng: random.Random) -> tuple[int, int]:
    """Most pictures are square; the others lie or stand up to 7:5."""
    side = rng.randint(64, 224)
    if rng.random() < 0.65:
        return side, side
    longer = round(side * rng.uniform(1.05, 1.4))
    return (longer, side) if rng.random() < 0.5 else (side, longer)


def _random_thing(rng: random.Random, kind: Kind, cell: int, *, is_alone: bool) -> Thing:
    name = {"shape": SHAPES, "icon": ICONS, "number": [str(number) for number in NUMBERS]}[kind]
    row, column = divmod(cell, 3)
    is_large = is_alone and cell == CELLS.index("center") and rng.random() < 0.6
    size = rng.uniform(1.0, 2.4) if is_large else rng.uniform(0.8, 1.02)
    center = tuple((index + 0.5 + rng.uniform(-0.12, 0.12)) / 3 for index in (column, row))
    return Thing(
        kind=kind,
        name=rng.choice(name),
        color=rng.choice(list(COLORS)) if kind == "shape" else None,
        cell=cell,
        center=(center[0], center[1]),
        size=size,
        angle=rng.uniform(-12, 12) if kind == "shape" else 0.0,
    )


def _repeat_some(rng: random.Random, things: list[Thing]) -> None:
    """Let later shapes take the shape or the colour of the first, so that counting is more than presence."""
    shapes = [index for index, thing in enumerate(things) if thing.kind == "shape"]
    for index in shapes[1:]:
        first, thing = things[shapes[0]], things[index]
        draw = rng.random()
        name = first.name if draw < 0.25 else thing.name
        color = first.color if 0.25 <= draw < 0.4 else thing.color
        things[index] = Thing(thing.kind, name, color, thing.cell, thing.center, thing.size, thing.angle)


def _random_background(
    rng: random.Random, things: list[Thing]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return two colours that stand out against every shape."""
    used = [COLORS[thing.color] for thing in things if thing.color]
    first = _contrasting(rng, used)
    second = _contrasting(rng, used) if rng.random() < 0.35 else first
    return first, second


def _contrasting(rng: random.Random, used: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    for _ in range(20):
        low, high = rng.choice(((190, 255), (190, 255), (0, 60), (60, 220)))
        color = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
        if all(sum((a - b) ** 2 for a, b in zip(color, other, strict=True)) > 110**2 for other in used):
            return color
    return (255, 255, 255)
