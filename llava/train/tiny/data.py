"""Training data of the embedded model's two stages, in LLaVA's own format: JSON lines and pictures.

    python -m llava.train.tiny.data --out runs/tiny/data --align 4000 --finetune 24000

    align.jsonl       short conversations about a picture, descriptions among them
    finetune.jsonl    long conversations (a picture is paid for once), single questions, without a picture
    images/           64 x 64 PNG files, padded and scaled as the checkpoint's picture rules say

Every sample has a picture of its own. A seed makes a sample, so the same numbers give the same files; what is
already there is kept.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from llava import log
from llava.command import say
from llava.demo.drawing import draw
from llava.demo.questions import QA, ask, vary, without_picture
from llava.demo.scenes import Mix, Scene, make_scene
from llava.files import write_jsonl
from llava.processing.pixels import ImageProcessor
from llava.train.tiny.tower import RULES

Stage = Literal["align", "finetune"]

CHAT_MIX = Mix(number=0.45, icon=0.45)
"""Numbers and icons are harder than shapes, so training pictures have them more often."""

WEIGHTS = {
    "color": 1.2,
    "shape": 0.8,
    "count_all": 0.7,
    "count_shape": 2.2,
    "count_color": 0.7,
    "position": 4.0,
    "presence": 1.5,
    "what_at": 2.0,
    "number": 3.0,
    "icon": 3.0,
    "describe": 1.3,
    "what_is_this": 0.5,
    "absent": 0.4,
    "small_talk": 0.15,
}
"""How often each kind of question is asked in training: what is hard to learn, more."""

_TELLS_ALL = ("describe", "what_is_this")
"""Their answers give the others away, so in a conversation they come last."""

_ONCE = {"number": "number", "icon": "icon", "describe": "all", "what_is_this": "all"}
"""Kinds with one answer per picture, by what they ask for: asked again, it could be copied."""

_FIRST_SEED = {"align": 200_000_000, "finetune": 300_000_000}
"""Each stage has pictures of its own."""

_TURNS = {"align": (4, 8), "finetune": (8, 14)}
"""Fewest and most questions of a long conversation."""

_SINGLE_SHARE = 0.3
_WITHOUT_PICTURE_SHARE = 0.08


def questions_about(scene: Scene, rng: random.Random, number: int) -> list[QA]:
    """Return `number` questions of kinds drawn by WEIGHTS, phrased as people type them."""
    questions: list[QA] = []
    while len(questions) < number:
        qa = ask(scene, rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0], rng)
        if qa is not None:
            questions.append(qa._replace(question=vary(qa.question, rng)))
    return questions


def conversation(scene: Scene, rng: random.Random, number: int) -> list[QA]:
    """Return up to `number` turns about one picture of which none gives a later one's whole answer away."""
    turns: list[QA] = []
    for qa in questions_about(scene, rng, number):
        is_asked = any(other.question == qa.question for other in turns)
        topic = _ONCE.get(qa.kind)
        is_known = topic is not None and any(_ONCE.get(other.kind) == topic for other in turns)
        if not (is_asked or is_known):
            turns.append(qa)
    return sorted(turns, key=lambda qa: qa.kind in _TELLS_ALL)


def samples(stage: Stage, number: int) -> Iterator[tuple[dict[str, Any], Scene | None]]:
    """Yield records in LLaVA's format, each with the scene of its picture, or None for one without."""
    for seed in range(_FIRST_SEED[stage], _FIRST_SEED[stage] + number):
        scene, rng = make_scene(seed, "train", CHAT_MIX), random.Random(f"{stage} {seed}")
        if stage == "finetune" and rng.random() < _WITHOUT_PICTURE_SHARE:
            yield _record(seed, [without_picture(scene, rng)], image=None), None
            continue
        is_single = rng.random() < _SINGLE_SHARE
        turns = conversation(scene, rng, 1 if is_single else rng.randint(*_TURNS[stage]))
        yield _record(seed, turns, image=f"images/{seed // 1000}/{seed % 1000:03d}.png"), scene


def _record(seed: int, turns: list[QA], *, image: str | None) -> dict[str, Any]:
    values = [text for turn in turns for text in (turn.question, turn.answer)]
    record: dict[str, Any] = {"id": str(seed)}
    if image is not None:
        record["image"] = image
        values[0] = f"<image>\n{values[0]}"
    record["conversations"] = [
        {"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)
    ]
    return record


def picture(scene: Scene) -> Image.Image:
    """Return the picture as the model sees it: padded to a square and scaled, RGB."""
    pixel_values = ImageProcessor(RULES)([draw(scene).image])[0]  # [3, S, S]
    mean, std = (torch.tensor(values)[:, None, None] for values in (RULES.mean, RULES.std))
    pixels = ((pixel_values * std + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def write(folder: Path, stage: Stage, number: int) -> Path:
    """Write a stage's pictures, then its JSON lines; return the latter's path."""
    records = []
    for record, scene in samples(stage, number):
        records.append(record)
        if scene is not None:
            path = folder / record["image"]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(scene).save(path)
    path = folder / f"{stage}.jsonl"
    write_jsonl(path, records)
    return path


def main() -> None:
    """Write the data of both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data")
    parser.add_argument("--align", type=int, default=4000, help="samples of the first stage")
    parser.add_argument("--finetune", type=int, default=24000, help="samples of the second stage")
    args = parser.parse_args()
    log.configure()
    torch.set_num_threads(1)
    say(f"wrote {write(args.out, 'align', args.align)}")
    say(f"wrote {write(args.out, 'finetune', args.finetune)}")


if __name__ == "__main__":
    main()
