"""POPE: whether objects are in a picture. Mean F1 over three ways of choosing the objects that are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.metrics.yes_no import Confusion, pope_answer
from llava.eval.published import published_for
from llava.eval.questions import SHORT_ANSWER, Question
from llava.files import read_jsonl

_OPPOSITE = {"yes": "no", "no": "yes"}


class Pope(Benchmark):
    """Polling for objects that are not there."""

    name = "pope"
    title = "POPE"
    download = (
        "Put the question file of LLaVA's eval.zip at pope/llava_pope_test.jsonl, the three "
        "coco_pope_*.json of AoiDragon/POPE (commit e3e39262) in pope/coco, and COCO val2014 in pope/val2014."
    )
    published = published_for("pope")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        folder = root / "pope"
        return Files(folder / "llava_pope_test.jsonl", folder / "val2014", annotations=folder / "coco")

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score by F1; answers belong to questions by id, questions to labels by picture and text."""
        self.require(files.questions, files.annotations)
        assert files.annotations is not None
        questions = self.questions(files)
        labels = {name: read_labels(files.annotations, name) for name in {q.category for q in questions}}
        matching = match(questions, records)
        items = []
        for question in questions:
            asked = question.text.removesuffix(SHORT_ANSWER)
            label = labels[question.category].get((question.image or "", asked))
            if label is None:
                raise DataError(
                    f"question {question.id} ({asked}) is not among the labels of {question.category}",
                    remedy="Question file and coco_pope_*.json are of different releases.",
                )
            text = matching.text(question)
            # No answer is a wrong one.
            said = _OPPOSITE[label] if text is None else pope_answer(text)
            items.append(_item(question, said, label, is_answered=text is not None))
        return _scoring(items, matching.notices)

    def score_as_original(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Match the answers of each split with its labels by their place in the file, whatever they answer.

        Raises DataError for an answer to no question, and for more answers than labels.
        """
        self.require(files.questions, files.annotations)
        assert files.annotations is not None
        questions = {str(question.id): question for question in self.questions(files)}
        answered: dict[str, list[tuple[Question, str]]] = {}
        for record in records:
            question = questions.get(str(record["question_id"]))
            if question is None:
                raise DataError(f"answer {record['question_id']!r} belongs to no question of POPE")
            answered.setdefault(question.category, []).append((question, str(record["text"])))
        items, notices = [], []
        for category, own in answered.items():
            labels = [label for _, label in _label_lines(files.annotations, category)]
            if len(own) > len(labels):
                raise DataError(f"{category} has {len(own)} answers and {len(labels)} labels")
            if len(own) < len(labels):
                notices.append(
                    f"{category}: {len(own)} answers to {len(labels)} labels: what follows a missing answer "
                    "is compared with the label before its own"
                )
            for (question, text), label in zip(own, labels, strict=False):
                items.append(_item(question, pope_answer(text), label))
        if not items:
            raise DataError("there are no answers to score", remedy="Answer the questions first.")
        return _scoring(items, notices)


def _item(question: Question, said: str, label: str, *, is_answered: bool = True) -> Item:
    return Item(
        id=question.id,
        score=float(said == label),
        cluster=question.cluster,
        category=question.category,
        prediction=said if is_answered else None,
        reference=label,
        extra={"counted_as": said},
    )


def _scoring(items: Sequence[Item], notices: Sequence[str]) -> Scoring:
    figures = aggregate(items)
    silent = [name for name in {item.category for item in items} if not figures[f"{name}/TP"]]
    notices = [*notices, *(f"{name}: no right yes, so that F1 is 0" for name in sorted(silent))]
    return Scoring("score", figures, items, aggregate, notices=notices)


def read_labels(folder: Path, category: str) -> dict[tuple[str, str], str]:
    """Read the labels of a split, "yes" or "no" by picture and question; raises FileError, DataError."""
    labels: dict[tuple[str, str], str] = {}
    for number, (key, label) in enumerate(_label_lines(folder, category), start=1):
        if labels.setdefault(key, label) != label:
            raise DataError(
                f"label {number} of {category} in {folder} contradicts an earlier one of the same question"
            )
    return labels


def _label_lines(folder: Path, category: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield picture and question with the label, in the order of the file."""
    path = folder / f"coco_pope_{category}.json"
    for number, record in read_jsonl(path):
        try:
            key, label = (record["image"], record["text"]), record["label"]
        except (KeyError, TypeError):
            label = None
        if label not in _OPPOSITE:
            raise DataError(
                f"{path} line {number} is no label", remedy='Lines hold "image", "text", "label".'
            )
        yield key, label


def confusion_figures(confusion: Confusion) -> dict[str, float]:
    """Return what the original prints of one split, by the names of its output."""
    return {
        "samples": confusion.samples,
        "TP": confusion.tp,
        "FP": confusion.fp,
        "TN": confusion.tn,
        "FN": confusion.fn,
        "accuracy": confusion.accuracy,
        "precision": confusion.precision,
        "recall": confusion.recall,
        "f1": confusion.f1,
        "yes_ratio": confusion.yes_ratio,
    }


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the figures of each split and their means; "score" is 100 times the mean F1."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        pairs.setdefault(item.category, []).append((item.extra["counted_as"], str(item.reference)))
    splits = {name: Confusion.count(own) for name, own in pairs.items()}
    mean_f1 = sum(split.f1 for split in splits.values()) / max(1, len(splits))
    figures: dict[str, float] = {"score": 100 * mean_f1, "average_f1": mean_f1}
    figures["average_accuracy"] = sum(split.accuracy for split in splits.values()) / max(1, len(splits))
    for name, split in splits.items():
        figures |= {f"{name}/{key}": value for key, value in confusion_figures(split).items()}
    return figures


BENCHMARKS = (Pope(),)
