"""Draw scenes: a picture, and a map of which thing each pixel belongs to.

Between `scenes.py` and the image processor. The map gives the vision tower's per-patch labels in training and
lets tests check that annotations and pixels agree.
"""

from __future__ import annotations

import math
import random
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.demo.scenes import COLORS, Scene, Thing

Box = tuple[float, float, float, float]


class Drawing(NamedTuple):
    """A drawn scene.

    image: RGB picture of the scene's size.
    owner: mode "L", same size; 1 + index of the thing that a pixel belongs to, 0 for background.
    digits: mode "L", same size; 1 + the digit that a pixel belongs to, 0 elsewhere.
    """

    image: Image.Image
    owner: Image.Image
    digits: Image.Image


def draw(scene: Scene) -> Drawing:
    """Draw a scene; the same scene gives the same pixels (with one version of Pillow)."""
    rng = random.Random(f"drawing {scene.seed} {scene.annotation}")
    image = _background(scene)
    owner, digits = Image.new("L", image.size, 0), Image.new("L", image.size, 0)
    for index, thing in enumerate(scene.things):
        box = thing_box(scene, thing)
        if thing.kind == "shape":
            _draw_shape(image, owner, thing, box, index + 1, rng)
        elif thing.kind == "number":
            _draw_number(image, owner, digits, scene, thing, box, index + 1)
        else:
            _draw_icon(image, owner, thing, box, index + 1)
    return Drawing(_with_noise(image, scene.noise, rng), owner, digits)


def thing_box(scene: Scene, thing: Thing) -> Box:
    """Return left, top, right, bottom of the square around a thing, in pixels."""
    half = thing.size * min(scene.width, scene.height) / 6
    x, y = thing.center[0] * scene.width, thing.center[1] * scene.height
    return x - half, y - half, x + half, y + half


def _background(scene: Scene) -> Image.Image:
    first, second = (np.array(color, dtype=np.float32) for color in scene.background)
    if scene.background[0] == scene.background[1]:
        return Image.new("RGB", (scene.width, scene.height), scene.background[0])
    across = np.linspace(0, 1, scene.width, dtype=np.float32)[None, :]
    down = np.linspace(0, 1, scene.height, dtype=np.float32)[:, None]
    blend = {0: across + 0 * down, 1: down + 0 * across, 2: (across + down) / 2}[scene.seed % 3][..., None]
    return Image.fromarray((first * (1 - blend) + second * blend).astype(np.uint8))  # [H, W, 3]


def _with_noise(image: Image.Image, deviation: float, rng: random.Random) -> Image.Image:
    if not deviation:
        return image
    pixels = np.asarray(image).astype(np.float32)
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels + deviation * noise, 0, 255).astype(np.uint8))


def _draw_shape(
    image: Image.Image, owner: Image.Image, thing: Thing, box: Box, label: int, rng: random.Random
) -> None:
    assert thing.color is not None
    red, green, blue = (min(255, max(0, value + rng.randint(-18, 18))) for value in COLORS[thing.color])
    outline = (red // 2, green // 2, blue // 2) if rng.random() < 0.2 else None
    for draw_on, fill, line in (
        (ImageDraw.Draw(image), (red, green, blue), outline),
        (ImageDraw.Draw(owner), label, None),
    ):
        if thing.name == "circle":
            draw_on.ellipse(box, fill=fill, outline=line)
        else:
            draw_on.polygon(_corners(thing, box), fill=fill, outline=line)


def _corners(thing: Thing, box: Box) -> list[tuple[float, float]]:
    """Return a shape's outline, turned by its angle."""
    half = (box[2] - box[0]) / 2
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    sine, cosine = math.sin(math.radians(thing.angle)), math.cos(math.radians(thing.angle))
    return [
        (x + half * (u * cosine - v * sine), y + half * (u * sine + v * cosine))
        for u, v in _outline(thing.name)
    ]


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Return a shape's corners in the square from -1 to 1, y downwards."""
    if shape == "square":
        return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    if shape == "triangle":
        return ((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8))
    if shape == "star":
        turns = [math.pi * step / 5 for step in range(10)]
        radii = [1.0, 0.42] * 5
        return tuple((r * math.sin(turn), -r * math.cos(turn)) for r, turn in zip(radii, turns, strict=True))
    if shape == "cross":
        corner = ((0.3, -0.95), (0.3, -0.3), (0.95, -0.3))
        quarters = [(c, s) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return tuple((u * c - v * s, u * s + v * c) for c, s in quarters for u, v in corner)
    assert shape == "heart", shape
    steps = [2 * math.pi * step / 40 for step in range(40)]
    return tuple(
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17 - 0.12,
        )
        for t in steps
    )


def _draw_number(
    image: Image.Image,
    owner: Image.Image,
    digits: Image.Image,
    scene: Scene,
    thing: Thing,
    box: Box,
    label: int,
) -> None:
    """Write a number in a colour that stands out: black or white."""
    lightness = sum(map(sum, scene.background)) / 6
    fill = (15, 15, 15) if lightness > 120 else (250, 250, 250)
    side = box[2] - box[0]
    font = ImageFont.load_default(size=side * 0.85)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    stroke = round(side * 0.03) if scene.seed % 2 else 0
    ImageDraw.Draw(image).text(middle, thing.name, fill=fill, font=font, anchor="mm", stroke_width=stroke)
    left, top, right, bottom = ImageDraw.Draw(owner).textbbox(middle, thing.name, font, "mm")
    ImageDraw.Draw(owner).rectangle((left, top, right, bottom), fill=label)
    width = (right - left) / len(thing.name)  # the font's digits are all of one width
    for index, digit in enumerate(thing.name):
        place = (left + index * width, top, left + (index + 1) * width, bottom)
        ImageDraw.Draw(digits).rectangle(place, fill=1 + int(digit))


def _draw_icon(image: Image.Image, owner: Image.Image, thing: Thing, box: Box, label: int) -> None:
    side = max(1, round(box[2] - box[0]))
    icon = load_icon(thing.name).resize((side, side), Image.Resampling.BILINEAR)
    corner = (round(box[0]), round(box[1]))
    image.paste(icon, corner, icon)
    owner.paste(label, corner, icon.getchannel("A").point([0] * 100 + [255] * 156))


@cache
def load_icon(name: str) -> Image.Image:
    """Return an icon as RGBA, cut from Noto Color Emoji (see LICENSES.md)."""
    with (resources.files("llava.demo") / "icons" / f"{name}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")
