"""Exact match of the embedded model on generated scenes that training never saw.

    python -m llava.eval.heldout [--model FOLDER] [--scenes N] [--json]

Scenes are held out by annotation (`llava.demo.scenes`), pictures are drawn, and questions are asked through
the chat path: `llava.load(...).generate`, greedy. An answer counts when it equals the right one to the
letter. Beside each accuracy stands what always giving the most frequent answer would reach.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import llava
from llava import log
from llava.demo.drawing import draw
from llava.demo.questions import QUESTION_KINDS, ask
from llava.demo.scenes import make_scene
from llava.engine.request import Request, SamplingParams

if TYPE_CHECKING:
    from PIL import Image

    from llava.engine.torch_engine import TorchEngine

FIRST_SEED: Final = 100_000
"""Apart from the held-out scenes that are looked at during training (seeds from 0)."""

TYPES: Final[dict[str, tuple[str, ...]]] = {
    "color": ("color",),
    "shape": ("shape",),
    "count": ("count_all", "count_shape", "count_color"),
    "position": ("position",),
    "presence": ("presence",),
    "number": ("number",),
    "icon": ("icon",),
}
"""The types of the stated mean, and the kinds of question that each has; the other kinds are given singly."""


class Question(NamedTuple):
    """A question about a held-out picture."""

    kind: str
    image: Image.Image
    question: str
    answer: str


class Score(NamedTuple):
    """How many questions of a type there were and the shares answered right."""

    num_questions: int
    accuracy: float
    majority: float
    """Accuracy of the most frequent answer of the type."""


def held_out_questions(num_scenes: int, *, first_seed: int = FIRST_SEED) -> list[Question]:
    """Return one question of every kind that fits, for each of `num_scenes` held-out scenes."""
    questions = []
    for seed in range(first_seed, first_seed + num_scenes):
        scene, rng = make_scene(seed, "held-out"), random.Random(f"held-out questions {seed}")
        image = draw(scene).image
        for kind in QUESTION_KINDS:
            qa = ask(scene, kind, rng)
            if qa is not None:
                questions.append(Question(kind, image, qa.question, qa.answer))
    return questions


def answer_all(engine: TorchEngine, questions: Sequence[Question], *, batch_size: int = 16) -> list[str]:
    """Answer every question greedily, each in a conversation of its own."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=96)
    requests = [Request.of_question(item.question, [item.image], sampling) for item in questions]
    return [answer.text for answer in engine.generate(requests, batch_size=batch_size)]


def score(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Score]:
    """Return the score of each type of TYPES, then of each other kind of question."""
    type_of = {kind: name for name, kinds in TYPES.items() for kind in kinds}
    right: Counter[str] = Counter()
    truths: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item, answer in zip(questions, answers, strict=True):
        name = type_of.get(item.kind, item.kind)
        truths[name][item.answer] += 1
        right[name] += answer == item.answer
    ordered = [*TYPES, *(name for name in truths if name not in TYPES)]
    return {
        name: Score(
            truths[name].total(),
            right[name] / truths[name].total(),
            truths[name].most_common(1)[0][1] / truths[name].total(),
        )
        for name in ordered
        if name in truths
    }


def mean_accuracy(scores: Mapping[str, Score]) -> float:
    """Return the mean accuracy over those of TYPES that were asked, each weighing the same."""
    names = _asked(scores)
    return sum(scores[name].accuracy for name in names) / len(names)


def _asked(scores: Mapping[str, Score]) -> list[str]:
    """Return those of TYPES that came up: over a few scenes not all do."""
    return [name for name in TYPES if name in scores]


def table(scores: Mapping[str, Score]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| question | n | accuracy | majority answer |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {s.num_questions} | {s.accuracy:.3f} | {s.majority:.3f} |" for name, s in scores.items()
    ]
    names = _asked(scores)
    majority = sum(scores[name].majority for name in names) / len(names)
    lines.append(f"| **mean of {', '.join(names)}** | | **{mean_accuracy(scores):.3f}** | {majority:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(prog="python -m llava.eval.heldout", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="checkpoint folder; the embedded model if not given")
    parser.add_argument("--scenes", type=int, default=300, help="number of pictures (default 300)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    log.configure()
    questions = held_out_questions(args.scenes)
    scores = score(questions, answer_all(llava.load(args.model), questions))
    if args.json:
        result = {name: values._asdict() for name, values in scores.items()}
        text = json.dumps({"mean": mean_accuracy(scores), "types": result}, indent=2)
    else:
        text = table(scores)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
