"""The embedded model's own benchmark: questions about held-out scenes, drawn here; nothing is downloaded.

    ROOT/tiny/questions.jsonl   {"question_id", "image", "text", "category", "answer"}
    ROOT/tiny/images            the pictures; both are made when they are missing, always the same

An answer counts when it equals the right one to the letter; the score is the mean over the types of
questions that the model card states (`llava.eval.heldout`, which asks the same without files).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Published, Scoring
from llava.eval.heldout import TYPES, held_out_questions
from llava.eval.questions import Question, read_questions
from llava.files import read_jsonl, write_jsonl

NUM_SCENES = 40
_TYPE_OF = {kind: name for name, kinds in TYPES.items() for kind in kinds}


class Tiny(Benchmark):
    """Held-out scenes."""

    name = "tiny"
    title = "Held-out scenes"
    max_new_tokens = 96
    download = "Nothing is downloaded: llava eval tiny draws it."
    published = (Published("InternVL-Chat-Tiny", 98.7, "its model card, over 400 scenes"),)

    def files(self, root: Path) -> Files:
        """Return where the drawn pictures and questions are."""
        questions = root / "tiny" / "questions.jsonl"
        return Files(questions=questions, images=root / "tiny" / "images", annotations=questions)

    def questions(self, files: Files) -> list[Question]:
        """Return the questions, drawing them and their pictures first where they are missing."""
        if not files.questions.exists():
            make(files)
        return read_questions(files.questions)

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score by exact match; raises FileError where the questions are missing."""
        self.require(files.annotations)
        questions = read_questions(files.questions)
        right = {record["question_id"]: record["answer"] for _, record in read_jsonl(files.questions)}
        matching = match(questions, records)
        items = [
            Item(
                id=question.id,
                score=float(matching.text(question) == right[question.id]),
                cluster=question.cluster,
                category=question.category,
                prediction=matching.text(question),
                reference=right[question.id],
            )
            for question in questions
        ]
        return Scoring("mean", aggregate(items), items, aggregate, notices=matching.notices)


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the accuracy of each type of question, and the mean over the stated types, in percent."""
    scores: dict[str, list[float]] = {}
    for item in items:
        scores.setdefault(item.category, []).append(item.score)
    figures = {name: 100 * math.fsum(own) / len(own) for name, own in scores.items()}
    stated = [figures[name] for name in TYPES if name in figures]
    mean = math.fsum(stated) / len(stated) if stated else math.nan
    return {"mean": mean, **dict(sorted(figures.items()))}


def make(files: Files, *, num_scenes: int = NUM_SCENES) -> None:
    """Draw the pictures and write the questions."""
    files.images.mkdir(parents=True, exist_ok=True)
    names: dict[int, str] = {}
    records = []
    for number, asked in enumerate(held_out_questions(num_scenes)):
        name = names.setdefault(id(asked.image), f"{len(names):03}.png")
        if not (files.images / name).exists():
            asked.image.save(files.images / name)
        records.append(
            {
                "question_id": number,
                "image": name,
                "text": asked.question,
                "category": _TYPE_OF.get(asked.kind, asked.kind),
                "answer": asked.answer,
            }
        )
    # Last, since what is there is taken for whole.
    write_jsonl(files.questions, records)


BENCHMARKS = (Tiny(),)
