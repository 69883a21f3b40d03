"""ScienceQA: school questions with and without pictures. Papers print the accuracy of those with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.metrics.scienceqa import FAILED, OPTIONS, option_index, parse_letter
from llava.eval.published import published_for
from llava.eval.question_files import read_science_questions
from llava.eval.questions import Question
from llava.files import read_json, write_json


class ScienceQa(Benchmark):
    """Choices of up to five options."""

    name = "scienceqa"
    title = "ScienceQA (image)"
    max_new_tokens = 1024
    is_cropped_originally = True
    download = (
        "Put problems.json and pid_splits.json of lupantech/ScienceQA in scienceqa and its test pictures in "
        "scienceqa/images/test. The question file is made from them."
    )
    published = published_for("scienceqa")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        folder = root / "scienceqa"
        return Files(folder / "llava_test_CQM-A.json", folder / "images" / "test", annotations=folder)

    def questions(self, files: Files) -> list[Question]:
        """Read the question file, and make it from problems.json first where it is missing."""
        if not files.questions.exists():
            self.require(files.annotations)
            assert files.annotations is not None
            write_json(files.questions, build_questions(*read_problems(files.annotations)))
        return read_science_questions(files.questions)

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score by the option that an answer names; what names none is wrong."""
        self.require(files.annotations)
        assert files.annotations is not None
        return score_answers(*read_problems(files.annotations), records)


def read_problems(folder: Path, split: str = "test") -> tuple[list[str], dict[str, Any]]:
    """Return the ids of a split and all problems by id; raises FileError, DataError."""
    splits, problems = read_json(folder / "pid_splits.json"), read_json(folder / "problems.json")
    if split not in splits:
        raise DataError(f"pid_splits.json has no split {split!r}", remedy=f"Known: {', '.join(splits)}")
    missing = [pid for pid in splits[split] if pid not in problems]
    if missing:
        raise DataError(f"problems.json lacks {len(missing)} problems of {split}, the first is {missing[0]}")
    return splits[split], problems


def build_questions(pids: Sequence[str], problems: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return LLaVA's question file (llava_test_CQM-A.json) for these problems."""
    entries = []
    for pid in pids:
        problem = problems[pid]
        has_image = problem["image"] is not None
        options = [f"{OPTIONS[place]}. {choice}" for place, choice in enumerate(problem["choices"])]
        text = (
            (f"{DEFAULT_IMAGE_TOKEN}\n" if has_image else "")
            + (f"Context: {problem['hint']}\n" if problem["hint"] else "")
            + "\n".join([problem["question"], *options])
        )
        turns = [
            {"from": "human", "value": text.replace("  ", " ").strip()},
            {"from": "gpt", "value": OPTIONS[problem["answer"]]},
        ]
        picture = {"image": f"{pid}/image.png"} if has_image else {}
        entries.append({"id": pid, **picture, "conversations": turns})
    return entries


def score_answers(
    pids: Sequence[str], problems: Mapping[str, Any], records: Sequence[dict[str, Any]]
) -> Scoring:
    """Score answer records; which questions have a picture is told by the prompts, as by the original."""
    questions = [Question(pid, "") for pid in pids]
    matching = match(questions, records)
    items, parsed, results = [], {}, {}
    for question in questions:
        pid, problem = str(question.id), problems[str(question.id)]
        text = matching.text(question)
        letter = FAILED if text is None else parse_letter(text)
        place = option_index(letter, problem["choices"])
        parsed[pid], results[pid] = letter, place
        prompt = str(matching.records.get(question.key, {}).get("prompt", ""))
        has_image = DEFAULT_IMAGE_TOKEN in prompt
        items.append(
            Item(
                pid,
                float(place == problem["answer"]),
                cluster=f"question {pid}",
                category="image" if has_image else "text",
                prediction=None if text is None else letter,
                reference=OPTIONS[problem["answer"]],
            )
        )
    if not items:
        raise DataError("the split holds no problems")
    notices = list(matching.notices)
    lost = [key for key in matching.missing if problems[str(key[0])].get("image") is not None]
    if lost:
        notices.append(f"{len(lost)} of them have a picture, and are outside img_acc, as by the original")
    if not any(item.category == "image" for item in items):
        notices.append("no answer is to a question with a picture: img_acc is 0 of 0")
    failed = sum(item.prediction == FAILED for item in items)
    if failed:
        notices.append(f"{failed} answers name no option: counted as wrong")
    details = {"parsed": parsed, "results": results}
    return Scoring("img_acc", aggregate(items), items, aggregate, details=details, notices=notices)


def aggregate(items: Sequence[Item]) -> Figures:
    """Return accuracy and counts, over all and over the questions with a picture."""
    images = [item.score for item in items if item.category == "image"]
    correct = sum(item.score for item in items)
    return {
        "acc": 100 * correct / max(1, len(items)),
        "correct": correct,
        "count": len(items),
        "img_acc": 100 * sum(images) / max(1, len(images)),
        "img_correct": sum(images),
        "img_total": len(images),
    }


BENCHMARKS = (ScienceQa(),)
