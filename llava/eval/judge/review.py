"""Two answers to a question, compared by a judge (GPT-assisted evaluation of LLaVA).

Requests, reading of scores and records: `llava/eval/eval_gpt_review{,_visual,_bench}.py` of the original.
Assistant 1 is the reference, assistant 2 the model under test. Files are matched by question.

`rule.json` holds LLaVA's own wording of the rules (Apache-2.0, haotian-liu/LLaVA, llava/eval/table/rule.json)
for all but its categories "coding" and "math".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llava.errors import DataError
from llava.eval.answers import match, read_answers
from llava.eval.judge.replies import JudgeRequest
from llava.eval.questions import Question, QuestionId, read_questions
from llava.files import read_json, read_jsonl

OWN_RULES = Path(__file__).with_name("rule.json")
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
TEMPERATURE = 0.2
MAX_TOKENS = 1024
BEST_SCORE = 10.0
UNREAD = (-1.0, -1.0)
"""What the original puts for scores that cannot be read."""

Kind = Literal["text", "visual", "bench"]
Scores = tuple[float, float]


class Rule(NamedTuple):
    """What a judge is told to do with a category of questions."""

    role: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with two answers, as the judge is shown it."""

    number: int
    """Place of the question in its file, from 1; the id of the record."""
    question: Question
    category: str
    rule: Rule
    context: str | None
    answers: tuple[Mapping[str, Any], Mapping[str, Any]]

    def request(self, *, is_swapped: bool = False, max_tokens: int = MAX_TOKENS) -> JudgeRequest:
        """Return what the judge is asked; swapped, it is shown the second answer first."""
        first, second = reversed(self.answers) if is_swapped else self.answers
        role = self.rule.role
        context = "" if self.context is None else f"[Context]\n{self.context}\n\n"
        content = (
            f"{context}[Question]\n{self.question.text}\n\n"
            f"[{role} 1]\n{first['text']}\n\n[End of {role} 1]\n\n"
            f"[{role} 2]\n{second['text']}\n\n[End of {role} 2]\n\n"
            f"[System]\n{self.rule.prompt}\n\n"
        )
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": content})
        return JudgeRequest(messages, TEMPERATURE, max_tokens)

    def record(self, content: str, scores: Scores | None) -> dict[str, Any]:
        """Return the original's record of a review."""
        ids = [answer.get("answer_id", answer["question_id"]) for answer in self.answers]
        return {
            "id": self.number,
            "question_id": self.question.id,
            "answer1_id": ids[0],
            "answer2_id": ids[1],
            "category": self.category,
            "content": content,
            "tuple": list(UNREAD if scores is None else scores),
        }


@dataclass(frozen=True)
class ReviewFiles:
    """What reviews are made from."""

    kind: Kind
    questions: Path
    answers: tuple[Path, ...] = ()
    """Of the reference and of the model."""
    context: Path | None = None
    rule: Path = OWN_RULES


class Pairs(NamedTuple):
    """Pairs in the order of the questions, and which questions have none."""

    pairs: list[Pair]
    missing: list[QuestionId]


def read_pairs(files: ReviewFiles) -> Pairs:
    """Match questions, contexts and both answers by id; raises FileError and what `make_pairs` raises."""
    answers = [read_answers(path) for path in files.answers]
    return make_pairs(files, read_questions(files.questions), answers[0], answers[1])


def make_pairs(
    files: ReviewFiles,
    questions: Sequence[Question],
    reference: Sequence[dict[str, Any]],
    model: Sequence[dict[str, Any]],
) -> Pairs:
    """Put two answers to each question together, with what the judge is shown besides.

    Raises DataError for a category without a rule or a picture without a context.
    """
    first, second = match(questions, reference).records, match(questions, model).records
    rules = read_rules(files.rule)
    contexts = {} if files.context is None else read_contexts(files.context, files.kind)
    pairs, missing = [], []
    for number, question in enumerate(questions, start=1):
        if question.key not in first or question.key not in second:
            missing.append(question.id)
            continue
        category = f"llava_bench_{question.category}" if files.kind == "bench" else question.category
        name = "default" if files.kind == "text" and category not in rules else category
        if name not in rules:
            raise DataError(
                f"{files.rule} has no rule for {name!r}, the category of question {question.id}",
                remedy=f"It has: {', '.join(rules)}.",
            )
        if files.kind != "text" and question.image not in contexts:
            raise DataError(
                f"{files.context} has nothing about {question.image}, shown with question {question.id}",
                remedy="Give the context file that goes with the questions.",
            )
        context = None if files.kind == "text" else contexts[question.image]
        answers = first[question.key], second[question.key]
        pairs.append(Pair(number, question, category, rules[name], context, answers))
    return Pairs(pairs, missing)


def read_rules(path: Path) -> dict[str, Rule]:
    """Read a rule file: {category: {"role", "prompt"}}; raises FileError, DataError."""
    try:
        return {name: Rule(own["role"], own["prompt"]) for name, own in read_json(path).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no rule file: {error!r}", remedy='Write {category: {"role": ..., "prompt": ...}}.'
        ) from error


def read_contexts(path: Path, kind: Kind) -> dict[str | None, str]:
    """Return what is said of each picture: captions, and for "visual" the boxes too; raises DataError."""
    contexts: dict[str | None, str] = {}
    for number, record in read_jsonl(path):
        try:
            if kind == "visual":
                captions = "\n".join(record["captions"])
                boxes = "\n".join(f"{own['category']}: {own['bbox']}" for own in record["instances"])
                contexts[record["image"]] = f"{captions}\n\n{boxes}"
            else:
                caption = record["caption"]
                contexts[record["image"]] = "\n".join(caption) if isinstance(caption, list) else str(caption)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} line {number} is no context: {error!r}") from error
    return contexts


def parse_score(review: str) -> list[float]:
    """Return the two scores of a review as the original reads them, [-1, -1] where it cannot."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = (float(part) for part in parts)
    except ValueError:
        return [-1, -1]
    return [first, second]


def read_scores(review: str) -> Scores | None:
    """Return the two scores of a review, None where there are none.

    Every reply that the original reads to scores from 0 to 10 is read alike; "8, 9" and "8  9" are too.
    """
    parts = review.strip().split("\n")[0].replace(",", " ").split()
    try:
        first, second = (float(part) for part in parts)
    except ValueError:
        return None
    return (first, second) if is_score(first) and is_score(second) else None


def read_as_original(review: str) -> Scores | None:
    """Return the two scores as `parse_score` gives them, None for [-1, -1]."""
    first, second = parse_score(review)
    return None if (first, second) == UNREAD else (first, second)


def is_score(value: object) -> bool:
    """Whether a judge may give this number."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= BEST_SCORE


def scores_of(record: Mapping[str, Any]) -> Sequence[float]:
    """Return the scores of a review record: "tuple", in old files "score"; raises DataError."""
    found = record.get("tuple", record.get("score"))
    if not isinstance(found, list) or len(found) != 2:
        raise DataError(f"review of question {record.get('question_id')!r} has no two scores: {found!r}")
    return found


def read_reviews(path: Path) -> list[dict[str, Any]]:
    """Return the records of a review file; raises FileError, DataError naming the line."""
    records = []
    for number, record in read_jsonl(path):
        if (
            not isinstance(record, dict)
            or "question_id" not in record
            or not {"tuple", "score"} & set(record)
        ):
            raise DataError(f"{path} line {number} is no review", remedy="Give a file of reviews.")
        records.append(record)
    return records
