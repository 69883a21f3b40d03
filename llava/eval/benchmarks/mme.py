"""MME: two yes-or-no questions a picture, fourteen tasks; points for right answers and for right pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from llava.errors import DataError
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.metrics.yes_no import Confusion, mme_answer
from llava.eval.published import published_for
from llava.eval.questions import SHORT_ANSWER, Question, QuestionId, read_questions
from llava.files import read_text, write_text

PERCEPTION = [
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
_ASK = "Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg")

Truth = Mapping[tuple[str, str, str], str]
"""Reference by category, name of the text file and question."""


class Line(NamedTuple):
    """An answer beside its reference, as the official scorer reads it."""

    category: str
    file: str
    question: str
    reference: str
    prediction: str


class Mme(Benchmark):
    """Perception, which papers print, and cognition."""

    name = "mme"
    title = "MME perception"
    unit = "points of 2000"
    download = (
        "Put llava_mme.jsonl of LLaVA's eval.zip and MME_Benchmark_release_version of the MME authors in MME."
    )
    published = published_for("mme")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        release = root / "MME" / "MME_Benchmark_release_version"
        return Files(root / "MME" / "llava_mme.jsonl", release, annotations=release)

    def questions(self, files: Files) -> list[Question]:
        """Read the question file, or make the questions from the official folders where it is missing."""
        if files.questions.exists():
            return read_questions(files.questions)
        self.require(files.annotations)
        assert files.annotations is not None
        return questions_from(files.annotations)

    def item_ids(self, files: Files, questions: Sequence[Question]) -> set[QuestionId]:
        """Return category, file and words of each question, as the official folders have them."""
        self.require(files.annotations)
        assert files.annotations is not None
        truth = read_truth(files.annotations)
        keys = (_key(truth, str(question.id), question.text) for question in questions)
        return {_name(category, file, words) for category, file, words in keys}

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score by the official rules; answers of one picture belong together wherever they stand."""
        self.require(files.annotations)
        assert files.annotations is not None
        truth = read_truth(files.annotations)
        lines = answer_lines(truth, records)
        return score_lines(lines, _expected(files, truth))

    def score_as_original(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Take two answers of a task that follow each other for those of one picture; none is missed.

        Raises DataError where a task has an odd number of them.
        """
        self.require(files.annotations)
        assert files.annotations is not None
        truth = read_truth(files.annotations)
        lines = answer_lines(truth, records)
        missing = len(_expected(files, truth) - {line[:3] for line in lines})
        scoring = score_lines_in_order(lines)
        notices = [f"{missing} questions have no answer: not counted, as by the original"] if missing else []
        return replace(scoring, notices=notices)

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write the folder of <category>.txt that the official scorer reads."""
        self.require(files.annotations)
        assert files.annotations is not None
        texts: dict[str, list[str]] = {}
        for line in answer_lines(read_truth(files.annotations), records):
            texts.setdefault(line.category, []).append("\t".join(line[1:]) + "\n")
        for category, own in texts.items():
            write_text(target / f"{category}.txt", "".join(own))
        return target


def _expected(files: Files, truth: Truth) -> set[tuple[str, str, str]]:
    """Return the questions that are asked; without a question file all that there are."""
    if not files.questions.exists():
        return set(truth)
    return {_key(truth, str(question.id), question.text) for question in read_questions(files.questions)}


def read_truth(folder: Path) -> dict[tuple[str, str, str], str]:
    """Read the references of the official folders; raises DataError naming a broken line."""
    truth: dict[tuple[str, str, str], str] = {}
    for path in _text_files(folder):
        category = path.relative_to(folder).parts[0]
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            question, tab, answer = line.strip().partition("\t")
            if not tab:
                raise DataError(f"{path} line {number} has no tab between question and answer")
            truth[category, path.name, question] = answer
    if not truth:
        raise DataError(f"{folder} holds no questions", remedy="Give MME_Benchmark_release_version.")
    return truth


def _text_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*/*.txt"), *folder.glob("*/questions_answers_YN/*.txt")])


def questions_from(folder: Path) -> list[Question]:
    """Make the questions from the official folders; raises DataError where a picture is missing."""
    questions = []
    for path in _text_files(folder):
        pictures = (
            path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
        )
        found = [pictures / (path.stem + ending) for ending in _PICTURES]
        picture = next((own for own in found if own.exists()), None)
        if picture is None:
            raise DataError(f"{path} has no picture in {pictures}")
        name = picture.relative_to(folder).as_posix()
        for line in read_text(path).splitlines():
            question = line.partition("\t")[0]
            if question.strip():
                text = question.removesuffix(_ASK).rstrip() + SHORT_ANSWER
                questions.append(Question(name, text, name, category=name.split("/")[0]))
    return questions


def _key(truth: Truth, identity: str, prompt: str) -> tuple[str, str, str]:
    """Return what a question is called in the official files; raises DataError where it is not there."""
    parts = identity.split("/")
    category, file = parts[0], parts[-1].split(".")[0] + ".txt"
    question = prompt.replace(SHORT_ANSWER.strip(), "").strip()
    forms = [question] if _ASK in question else [f"{question} {_ASK}", f"{question}  {_ASK}"]
    for form in forms:
        if (category, file, form) in truth:
            return category, file, form
    raise DataError(
        f"MME has no question {question!r} about {identity}", remedy="Ask as LLaVA's question file."
    )


def answer_lines(truth: Truth, records: Sequence[dict[str, Any]]) -> list[Line]:
    """Return the answers with their references, in order; tabs and line ends of answers become spaces."""
    lines = []
    for record in records:
        key = _key(truth, str(record["question_id"]), str(record.get("prompt", "")))
        text = " ".join(str(record["text"]).replace("\t", "\n").splitlines())
        lines.append(Line(*key, truth[key], text))
    return lines


def score_lines(lines: Sequence[Line], expected: set[tuple[str, str, str]] | None = None) -> Scoring:
    """Score answers; `expected` are the questions that were asked, those without an answer count as wrong."""
    answers = {line[:3]: line for line in lines}
    asked = list(dict.fromkeys([*answers, *sorted(expected or ())]))
    right = {key: key in answers and _said(answers[key]) == answers[key].reference.lower() for key in asked}
    pairs: dict[tuple[str, str], list[bool]] = {}
    for key in asked:
        pairs.setdefault(key[:2], []).append(right[key])
    items = []
    for key in asked:
        category, file, question = key
        line, own = answers.get(key), pairs[category, file]
        items.append(
            Item(
                _name(category, file, question),
                float(right[key]),
                cluster=f"{category}/{file}",
                category=category,
                prediction=None if line is None else _said(line),
                reference=None if line is None else line.reference.lower(),
                extra={"plus": float(len(own) == 2 and all(own))},
            )
        )
    odd, missing = sum(len(own) != 2 for own in pairs.values()), len(asked) - len(answers)
    notices = [f"{missing} questions have no answer: counted as wrong"] if missing else []
    if doubled := len(lines) - len(answers):
        notices.append(f"{doubled} answers come again later: the last one counts")
    if odd:
        notices.append(f"{odd} pictures have not two questions: they count as no pair")
    return _scoring(items, notices)


def score_lines_in_order(lines: Sequence[Line]) -> Scoring:
    """Score answers as the official scorer: every line counts, and two lines of a task make a pair."""
    tasks: dict[str, list[Line]] = {}
    for line in lines:
        tasks.setdefault(line.category, []).append(line)
    items = []
    for category, own in tasks.items():
        if len(own) % 2:
            raise DataError(
                f"{category} has {len(own)} answers, which make no pairs",
                remedy="Answer all questions, or score without --compat.",
            )
        for number, pair in enumerate(zip(own[::2], own[1::2], strict=True)):
            right = [_said(line) == line.reference.lower() for line in pair]
            items += [
                Item(
                    _name(category, line.file, line.question),
                    float(is_right),
                    cluster=f"{category} pair {number}",
                    category=category,
                    prediction=_said(line),
                    reference=line.reference.lower(),
                    extra={"plus": float(all(right))},
                )
                for line, is_right in zip(pair, right, strict=True)
            ]
    return _scoring(items, [])


def _scoring(items: Sequence[Item], notices: Sequence[str]) -> Scoring:
    if not items:
        raise DataError("there are no answers to score", remedy="Answer the questions first.")
    figures = aggregate(items)
    return Scoring("score", figures, items, aggregate, details={"detail": detail(items)}, notices=notices)


def _name(category: str, file: str, question: str) -> str:
    return f"{category}/{file} {question}"


def _said(line: Line) -> str:
    return mme_answer(line.prediction)


def detail(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Return the official figures of each task."""
    tasks: dict[str, list[Item]] = {}
    for item in items:
        tasks.setdefault(item.category, []).append(item)
    result = {}
    for name, own in tasks.items():
        counted = Confusion.count((str(item.prediction), str(item.reference)) for item in own)
        result[name] = {
            "TP": counted.tp,
            "FN": counted.fn,
            "TN": counted.tn,
            "FP": counted.fp,
            "precision": counted.precision,
            "recall": counted.recall,
            "other_num": len(own) - counted.samples,
            "acc": sum(item.score for item in own) / len(own),
            "acc_plus": sum(item.extra["plus"] for item in own) / len(own),
        }
    return result


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the points of each task and both sums; "score" is that of perception."""
    points = {name: 100 * own["acc"] + 100 * own["acc_plus"] for name, own in detail(items).items()}
    figures: dict[str, float] = {}
    for part, names in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        figures[f"{part}/total"] = sum(points.get(name, 0.0) for name in names)
        figures |= {f"{part}/tasks/{name}": points[name] for name in names if name in points}
    return {"score": figures["Perception/total"], **figures}


BENCHMARKS = (Mme(),)
