"""VizWiz: questions of blind people; test goes to the server, val is scored here by the VQA metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError, UsageError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Files, Item, Scoring
from llava.eval.metrics.evalai import process
from llava.eval.metrics.vqa import vqa_score
from llava.eval.published import published_for
from llava.files import read_json, write_text


class VizWiz(Benchmark):
    """Photos taken by people who cannot see them."""

    name = "vizwiz"
    title = "VizWiz"
    download = (
        "Put the question file of LLaVA's eval.zip at vizwiz/llava_test.jsonl and the test images of VizWiz "
        "in vizwiz/test. To score val, give --questions and --annotations of val."
    )
    published = published_for("vizwiz")

    def files(self, root: Path) -> Files:
        """Return the layout of the original; references of test are on the server."""
        return Files(root / "vizwiz" / "llava_test.jsonl", root / "vizwiz" / "test")

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score against public annotations, by picture; raises UsageError where there are none."""
        if files.annotations is None:
            raise UsageError(
                "VizWiz: the references of test are on the server",
                remedy="Write the file to send in with llava eval export, or give --annotations of val.",
            )
        self.require(files.questions, files.annotations)
        questions = self.questions(files)
        matching = match(questions, records)
        by_image = {question.image: question for question in questions}
        items: list[Item] = []
        for number, record in enumerate(read_json(files.annotations), start=1):
            try:
                question = by_image[record["image"]]
                references = [own["answer"] for own in record["answers"]]
                category = record["answer_type"]
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{files.annotations} entry {number} lacks {error}, or its picture is not asked about",
                    remedy="Give questions and annotations of one split.",
                ) from None
            raw = matching.text(question)
            text = None if raw is None else process(raw)
            score = 0.0 if text is None else vqa_score(text, references)
            items.append(Item(question.id, score, question.cluster, category, text, references[0]))
        if not items:
            raise DataError(f"{files.annotations} holds no annotations")
        groups: dict[str, list[float]] = {}
        for item in items:
            groups.setdefault(item.category, []).append(item.score)
        figures = {"overall": 100 * sum(item.score for item in items) / len(items)}
        figures |= {f"perAnswerType/{name}": 100 * sum(own) / len(own) for name, own in groups.items()}
        return Scoring("overall", figures, items, None, notices=matching.notices)

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write the server's list of every picture with its answer; raises DataError naming what lacks."""
        questions = self.questions(files)
        matching = match(questions, records)
        if matching.missing:
            raise DataError(
                f"the upload would lack answers: {matching.notices[0]}", remedy="Answer them first."
            )
        answers = [
            {"image": question.image, "answer": process(matching.text(question) or "")}
            for question in questions
        ]
        write_text(target, json.dumps(answers))
        return target


BENCHMARKS = (VizWiz(),)
