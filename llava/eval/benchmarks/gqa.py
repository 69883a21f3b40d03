"""GQA: questions about scenes, one word each; exact match on testdev_balanced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Files, Item, Scoring
from llava.eval.metrics.gqa import distribution, percent, prediction_of, tables, traits_of
from llava.eval.published import published_for
from llava.eval.questions import Question
from llava.files import read_json, write_text


class Gqa(Benchmark):
    """Visual reasoning over scene graphs."""

    name = "gqa"
    title = "GQA"
    download = (
        "Put the question file of LLaVA's eval.zip at gqa/llava_gqa_testdev_balanced.jsonl, the questions "
        "(testdev_balanced_questions.json) and images of GQA 1.2 in gqa/data and gqa/data/images."
    )
    published = published_for("gqa")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        folder = root / "gqa"
        return Files(
            folder / "llava_gqa_testdev_balanced.jsonl",
            folder / "data" / "images",
            annotations=folder / "data" / "testdev_balanced_questions.json",
        )

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score balanced questions by exact match, with the official tables in `details`."""
        self.require(files.annotations)
        assert files.annotations is not None
        return score_predictions(
            read_json(files.annotations), [{**r, "text": prediction_of(str(r["text"]))} for r in records]
        )

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write what the official scorer reads: one entry an answer, in the order of the answers."""
        del files
        predictions = [
            {"questionId": record["question_id"], "prediction": prediction_of(str(record["text"]))}
            for record in records
        ]
        write_text(target, json.dumps(predictions))
        return target


def score_predictions(annotations: dict[str, Any], records: Sequence[dict[str, Any]]) -> Scoring:
    """Score predictions (records whose text is ready to be compared) against official question records."""
    everything = [Question(id=name, text=own["question"]) for name, own in annotations.items()]
    balanced = [question for question in everything if annotations[str(question.id)]["isBalanced"]]
    if not balanced:
        raise DataError("no question of the annotations is balanced", remedy="Take testdev_balanced.")
    # Answers to unbalanced questions are neither counted nor foreign.
    found = match(everything, records).records
    matching = match(balanced, [own for key, own in found.items() if annotations[str(key[0])]["isBalanced"]])
    foreign = match(everything, records)
    items, scored = [], []
    for question in balanced:
        record = annotations[str(question.id)]
        traits, text = traits_of(record), matching.text(question)
        score = float(text == record["answer"])
        scored.append((traits, score, record["answer"], text or ""))
        items.append(
            Item(
                question.id,
                score,
                cluster=str(record["imageId"]),
                category=traits.structural,
                prediction=text,
                reference=record["answer"],
            )
        )
    figures = {
        "accuracy": percent([score for _, score, *_ in scored]),
        "binary": percent([score for traits, score, *_ in scored if traits.structural != "query"]),
        "open": percent([score for traits, score, *_ in scored if traits.structural == "query"]),
        "validity": 0.0,
        "plausibility": 0.0,
        "consistency": 0.0,
        "grounding": 0.0,
        "distribution": distribution((traits.group, gold, text) for traits, _, gold, text in scored),
    }
    details = tables((traits, score) for traits, score, *_ in scored)
    own_notices = [n for n in foreign.notices if "have no answer" not in n] + matching.notices
    return Scoring("accuracy", figures, items, None, details=details, notices=own_notices)


BENCHMARKS = (Gqa(),)
