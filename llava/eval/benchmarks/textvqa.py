"""TextVQA: questions about writing in pictures, asked with the tokens that an OCR system read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.metrics.evalai import process
from llava.eval.metrics.vqa import soft_accuracy
from llava.eval.published import published_for
from llava.eval.questions import Question, QuestionId
from llava.files import read_json

_OCR = "Reference OCR token:"


class TextVqa(Benchmark):
    """Reading in pictures. Question ids are those of pictures, so the question's words belong to the key."""

    name = "textvqa"
    title = "TextVQA (with OCR tokens)"
    download = (
        "Put llava_textvqa_val_v051_ocr.jsonl of LLaVA's eval.zip and TextVQA_0.5.1_val.json in textvqa, and "
        "the train and val pictures (train_val_images.zip) in textvqa/train_images."
    )
    published = published_for("textvqa")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        folder = root / "textvqa"
        return Files(
            folder / "llava_textvqa_val_v051_ocr.jsonl",
            folder / "train_images",
            annotations=folder / "TextVQA_0.5.1_val.json",
        )

    def item_ids(self, files: Files, questions: Sequence[Question]) -> set[QuestionId]:
        """Return picture and words of each question."""
        del files
        return {f"{question.id} {question_in(question.text).lower()}" for question in questions}

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score each line of the answers as the original: what is missing is not counted, but said."""
        self.require(files.annotations)
        assert files.annotations is not None
        return score_lines(read_json(files.annotations), records)


def score_lines(annotations: dict[str, Any], records: Sequence[dict[str, Any]]) -> Scoring:
    """Score answer records against TextVQA's annotations; raises DataError for one it cannot place."""
    wanted = {(own["image_id"], own["question"].lower()): own["answers"] for own in annotations["data"]}
    items, times = [], Counter[tuple[str, str]]()
    for number, record in enumerate(records, start=1):
        key = (str(record["question_id"]), question_in(str(record.get("prompt", ""))).lower())
        if key not in wanted:
            raise DataError(
                f"answer {number} is to no question of the annotations: {key[0]}, {key[1]!r}",
                remedy="Answers and annotations are of different releases.",
            )
        times[key] += 1
        references = [process(reference) for reference in wanted[key]]
        text = process(str(record["text"]))
        name = f"{key[0]} {key[1]}" if times[key] == 1 else f"{key[0]} {key[1]} ({times[key]})"
        items.append(
            Item(name, soft_accuracy(text, references), key[0], prediction=text, reference=references[0])
        )
    if not items:
        raise DataError("there are no answers to score", remedy="Answer the questions first.")
    missing, doubled = len(wanted) - len(times), sum(count > 1 for count in times.values())
    notices = [f"{missing} questions have no answer: not counted, as by the original"] if missing else []
    if doubled:
        notices.append(f"{doubled} questions are answered more than once: every answer counts, as originally")
    details = {"per_line": [item.score for item in items]}
    return Scoring("score", aggregate(items), items, aggregate, details=details, notices=notices)


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the accuracy from 0 to 1, and as "score" in percent."""
    accuracy = sum(item.score for item in items) / max(1, len(items))
    return {"score": 100 * accuracy, "accuracy": accuracy, "samples": len(items)}


def question_in(prompt: str) -> str:
    """Return the question within a prompt of one of the original's four forms; raises DataError."""
    if prompt.startswith("OCR tokens: ") and "Question: " in prompt and " Short answer:" in prompt:
        return prompt.split("Question: ", 1)[1].split(" Short answer:", 1)[0]
    lines = prompt.split("\n")
    if f"{_OCR} " in prompt and len(lines) == 3:
        return lines[1] if prompt.startswith(_OCR) else lines[0]
    if len(lines) == 2:
        return lines[0]
    raise DataError(
        f"no question can be found in the prompt {prompt!r}", remedy="Ask as LLaVA's question file."
    )


BENCHMARKS = (TextVqa(),)
