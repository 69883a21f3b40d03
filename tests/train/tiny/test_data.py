"""The data files of the embedded model's two stages: repeatable, of its own scenes, without given answers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llava.demo.drawing import draw
from llava.demo.scenes import make_scene
from llava.files import read_jsonl
from llava.processing.pixels import ImageProcessor
from llava.train.tiny.data import CHAT_MIX, conversation, picture, samples, write
from llava.train.tiny.tower import RULES


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "finetune", 12), write(tmp_path / "b", "finetune", 12)
    assert first.read_text() == second.read_text()
    pictures = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert pictures
    for path in pictures:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_every_record_with_a_picture_names_one_that_is_there(tmp_path: Path) -> None:
    records = [record for _, record in read_jsonl(write(tmp_path, "finetune", 60))]
    assert 0 < sum("image" not in record for record in records) < 20
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        places = sum(turn["value"].count("<image>") for turn in turns)
        assert places == ("image" in record)
        if "image" in record:
            with Image.open(tmp_path / record["image"]) as image:
                assert image.size == (64, 64)


def test_no_scene_of_the_files_is_held_out() -> None:
    held_out = {make_scene(seed, "held-out").annotation for seed in range(300)}
    for stage in ("align", "finetune"):
        scenes = [scene for _, scene in samples(stage, 300) if scene is not None]
        assert {scene.split for scene in scenes} == {"train"}
        assert not held_out & {scene.annotation for scene in scenes}


def test_what_tells_everything_comes_last_and_once() -> None:
    rng = random.Random(0)
    for seed in range(60):
        kinds = [qa.kind for qa in conversation(make_scene(seed, "train", CHAT_MIX), rng, 14)]
        telling = [kind in ("describe", "what_is_this") for kind in kinds]
        assert sum(telling) <= 1
        assert not any(telling[:-1])
        assert kinds.count("number") <= 1
        assert kinds.count("icon") <= 1


def test_a_saved_picture_is_what_the_model_sees_of_the_drawing() -> None:
    processor = ImageProcessor(RULES)
    for seed in range(10):
        scene = make_scene(seed, "train")
        seen, saved = processor([draw(scene).image]), processor([picture(scene)])
        # Half a step of 8 bits, in units of the standard deviation.
        assert torch.allclose(seen, saved, atol=0.51 / 255 / min(RULES.std)), np.abs(seen - saved).max()
