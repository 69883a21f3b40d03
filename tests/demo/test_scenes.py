"""The generated pictures: repeatable, true to their annotations, split without overlap."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llava.demo.drawing import draw, thing_box
from llava.demo.questions import QUESTION_KINDS, ask, caption, describe
from llava.demo.scenes import CELLS, COLORS, ICONS, Scene, Thing, make_scene


def scene_of(*things: Thing) -> Scene:
    white = (255, 255, 255)
    return Scene(0, 120, 120, (white, white), 0.0, tuple(sorted(things, key=lambda thing: thing.cell)))


def shape(color: str, name: str, cell: int) -> Thing:
    row, column = divmod(cell, 3)
    return Thing("shape", name, color, cell, ((column + 0.5) / 3, (row + 0.5) / 3), 0.9, 0.0)


def test_the_same_seed_gives_the_same_scene_picture_and_questions() -> None:
    for seed in range(20):
        first, second = make_scene(seed, "train"), make_scene(seed, "train")
        assert first == second
        assert draw(first).image.tobytes() == draw(second).image.tobytes()
        for kind in QUESTION_KINDS:
            assert ask(first, kind, random.Random(seed)) == ask(second, kind, random.Random(seed))


def test_no_annotation_is_both_trained_on_and_held_out() -> None:
    train = {make_scene(seed, "train").annotation for seed in range(3000)}
    held_out = {make_scene(seed, "held-out").annotation for seed in range(1000)}
    assert not train & held_out


def test_the_split_depends_on_the_annotation_alone() -> None:
    thing = shape("red", "circle", 4)
    moved = Thing("shape", "circle", "red", 4, (0.47, 0.52), 2.0, 5.0)
    assert scene_of(thing).split == scene_of(moved).split


def test_every_shape_has_its_color_where_the_annotation_says() -> None:
    for seed in range(60):
        scene = make_scene(seed, "held-out")
        drawing = draw(scene)
        pixels, owner = np.asarray(drawing.image).astype(int), np.asarray(drawing.owner)
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(owner == index + 1)
            assert len(rows), scene.annotation
            center = (rows.mean() / scene.height, columns.mean() / scene.width)
            assert CELLS[3 * int(center[0] * 3) + int(center[1] * 3)] == CELLS[thing.cell]
            if thing.color:
                mean = pixels[rows, columns].mean(0)
                nearest = min(COLORS, key=lambda color: float(((mean - COLORS[color]) ** 2).sum()))
                assert nearest == thing.color, (scene.annotation, mean)


def test_things_do_not_overlap_and_stay_inside_the_picture() -> None:
    for seed in range(200):
        scene = make_scene(seed, "train")
        boxes = [thing_box(scene, thing) for thing in scene.things]
        assert len({thing.cell for thing in scene.things}) == len(scene.things)
        for left, top, right, bottom in boxes:
            margin = 0.05 * min(scene.width, scene.height)
            assert left > -margin
            assert top > -margin
            assert right < scene.width + margin
            assert bottom < scene.height + margin


def test_answers_follow_from_the_annotation() -> None:
    scene = scene_of(shape("red", "circle", 0), shape("blue", "circle", 4), shape("blue", "star", 8))
    rng = random.Random(0)
    for _ in range(40):
        color = ask(scene, "color", rng)
        assert color is not None
        assert "star" in color.question
        assert color.answer == "Blue."
        form = ask(scene, "shape", rng)
        assert form is not None
        assert "red" in form.question
        assert form.answer == "Circle."
        count = ask(scene, "count_all", rng)
        assert count is not None
        assert count.answer == "Three."
    assert caption(scene) == (
        "There is a red circle at the top left, a blue circle in the center "
        "and a blue star at the bottom right."
    )


def test_presence_is_asked_evenly_and_answered_rightly() -> None:
    rng = random.Random(1)
    yes = 0
    for seed in range(1500):
        scene = make_scene(seed, "train")
        qa = ask(scene, "presence", rng)
        assert qa is not None
        names = {describe(thing) for thing in scene.things} | {f"a {thing.name}" for thing in scene.shapes}
        names |= {"a number"} if scene.number else set()
        is_there = any(
            qa.question.rstrip("?.").removesuffix(" in the picture").endswith(f" {name}")
            or f" {name} in the image" in qa.question
            for name in names
        )
        assert is_there == (qa.answer == "Yes."), (scene.annotation, qa)
        yes += is_there
    assert 0.4 < yes / 1500 < 0.6


@pytest.mark.parametrize("kind", list(QUESTION_KINDS))
def test_questions_do_not_give_their_answers_away(kind: str) -> None:
    """The same question must have several answers over many scenes (small talk apart)."""
    rng = random.Random(2)
    answers = {qa.answer for seed in range(300) if (qa := ask(make_scene(seed, "train"), kind, rng))}
    assert len(answers) > 1
    for seed in range(200):
        qa = ask(make_scene(seed, "train"), kind, rng)
        if qa and kind in ("color", "shape", "position", "number", "icon"):
            assert qa.answer.rstrip(".").lower() not in qa.question.lower().split()


def test_every_icon_is_in_the_package() -> None:
    for name in ICONS:
        thing = Thing("icon", name, None, 4, (0.5, 0.5), 1.0, 0.0)
        owner = np.asarray(draw(scene_of(thing)).owner)
        assert (owner == 1).mean() > 0.02, name
