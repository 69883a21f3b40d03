"""SEED-Bench: choices about pictures and frames of videos; the answer must be the letter and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.published import published_for
from llava.eval.questions import Question
from llava.files import read_json, write_text


class SeedBench(Benchmark):
    """Twelve types of question, nine about pictures and three about videos."""

    name = "seed"
    title = "SEED-Bench"
    download = (
        "Put the question file of LLaVA's eval.zip at seed_bench/llava-seed-bench.jsonl, SEED-Bench.json and "
        "SEED-Bench-image of AILab-CVC/SEED-Bench in seed_bench, and the frames that "
        "scripts/extract_video_frames.py takes from the videos in seed_bench/SEED-Bench-video-image."
    )
    published = published_for("seed")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        folder = root / "seed_bench"
        return Files(folder / "llava-seed-bench.jsonl", folder, annotations=folder / "SEED-Bench.json")

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score by equality with the letter; a question without answer is wrong."""
        self.require(files.annotations)
        annotations = read_annotations(files)
        matching = match(_as_questions(annotations), records)
        items = []
        for record in annotations["questions"]:
            text = matching.text(Question(record["question_id"], ""))
            items.append(
                Item(
                    record["question_id"],
                    float(text == record["answer"]),
                    cluster=str(record.get("data_id", record["question_id"])),
                    category=str(record["question_type_id"]),
                    prediction=text,
                    reference=record["answer"],
                    extra={"data_type": record["data_type"]},
                )
            )
        counts: dict[str, list[int]] = {}
        for item in items:
            right_and_all = counts.setdefault(item.category, [0, 0])
            right_and_all[0] += int(item.score)
            right_and_all[1] += 1
        names = {str(number): name for name, number in annotations["question_type"].items()}
        details = {"counts": counts, "types": names}
        return Scoring("total", aggregate(items), items, aggregate, details=details, notices=matching.notices)

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write the leaderboard's JSONL in the annotation's order; raises DataError naming what lacks."""
        self.require(files.annotations)
        annotations = read_annotations(files)
        matching = match(_as_questions(annotations), records)
        if matching.missing:
            raise DataError(
                f"the upload would lack questions: {matching.notices[0]}", remedy="Answer them first."
            )
        lines = [
            {
                "question_id": record["question_id"],
                "prediction": matching.text(Question(record["question_id"], "")),
            }
            for record in annotations["questions"]
        ]
        write_text(target, "".join(json.dumps(line) + "\n" for line in lines))
        return target


def read_annotations(files: Files) -> dict[str, Any]:
    """Read SEED-Bench.json; raises FileError, DataError."""
    assert files.annotations is not None
    annotations = read_json(files.annotations)
    if not isinstance(annotations, dict) or not {"questions", "question_type"} <= set(annotations):
        raise DataError(f"{files.annotations} is not SEED-Bench.json: it lacks questions or question_type")
    return annotations


def _as_questions(annotations: dict[str, Any]) -> list[Question]:
    return [Question(record["question_id"], record["question"]) for record in annotations["questions"]]


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the percentages over all questions, over pictures, over videos and by type."""
    groups: dict[str, list[float]] = {"total": []}
    for item in items:
        for name in ("total", str(item.extra["data_type"]), f"type/{item.category}"):
            groups.setdefault(name, []).append(item.score)
    return {name: 100 * sum(own) / len(own) for name, own in groups.items() if own}


BENCHMARKS = (SeedBench(),)
