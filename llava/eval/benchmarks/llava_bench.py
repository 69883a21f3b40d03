"""LLaVA-Bench (in the wild): 60 open questions, answers compared with GPT-4's by a judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.answers import match, read_answers
from llava.eval.benchmark import Figures, Files, Item, Scoring
from llava.eval.judge.judge import Judge
from llava.eval.judge.judged import JudgedBenchmark
from llava.eval.judge.options import Judging
from llava.eval.judge.review import BEST_SCORE, ReviewFiles, is_score, make_pairs, read_reviews, scores_of
from llava.eval.judge.reviewing import review
from llava.eval.judge.summary import summarise
from llava.eval.judge.trust import stored_trust, trust_lines
from llava.eval.published import published_for
from llava.eval.questions import Question


class LlavaBench(JudgedBenchmark):
    """Open questions about 24 pictures."""

    name = "llava-bench"
    title = "LLaVA-Bench (in the wild)"
    unit = "% of the reference"
    max_new_tokens = 1024
    is_cropped_originally = True
    judge = "gpt-4-0314"
    reviews_file = "reviews.jsonl"
    compares = True
    download = (
        "Download liuhaotian/llava-bench-in-the-wild from Hugging Face into llava-bench-in-the-wild: "
        "questions.jsonl, context.jsonl, answers_gpt4.jsonl and images."
    )
    published = published_for("llava-bench")

    def files(self, root: Path) -> Files:
        """Return the layout of the original."""
        own = root / "llava-bench-in-the-wild"
        return Files(
            own / "questions.jsonl", own / "images", own / "answers_gpt4.jsonl", own / "context.jsonl"
        )

    def grade(
        self,
        files: Files,
        records: Sequence[dict[str, Any]],
        judge: Judge,
        target: Path,
        judging: Judging,
    ) -> Path:
        """Have the answers compared with the references; what has no reply is asked again next time."""
        self.require(files.questions, files.annotations, files.context)
        if files.annotations is None or files.context is None:
            raise DataError("LLaVA-Bench needs reference answers and contexts", remedy=self.download)
        wanted = ReviewFiles("bench", files.questions, context=files.context)
        pairs = make_pairs(wanted, self.questions(files), read_answers(files.annotations), list(records))
        review(pairs, judge, target, judging)
        return target

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Compute the relative score from reviews; those that have no scores are told and left out."""
        return self._score(files, records, compat=False)

    def score_as_original(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Average every line of the reviews, scores that could not be read as -1, as the original does."""
        return self._score(files, records, compat=True)

    def _score(self, files: Files, records: Sequence[dict[str, Any]], *, compat: bool) -> Scoring:
        questions = self.questions(files)
        reviews = read_reviews(self.reviews(files))
        known = {str(question.id): question for question in questions}
        foreign = [own["question_id"] for own in reviews if str(own["question_id"]) not in known]
        if foreign:
            raise DataError(f"{files.reviews}: question {foreign[0]!r} is not one of {files.questions}")
        self._refuse_others(reviews, match(questions, records).records.values())
        last = {str(own["question_id"]): own for own in reviews}
        counted = reviews if compat else list(last.values())
        summary = summarise(counted, compat=compat)
        items = [
            _item(known[str(record["question_id"])], record)
            for record in counted
            if compat or all(is_score(score) for score in scores_of(record))
        ]
        if not items:
            raise DataError(f"{files.reviews} has no scores", remedy="Have the answers judged again.")
        notices = list(summary.notices)
        if len(last) < len(questions):
            notices.append(f"{len(questions) - len(last)} questions have no review: not counted")
        details: dict[str, Any] = {"summary": summary.to_dict(), "printed": summary.lines()}
        if trust := stored_trust(self.reviews(files)):
            details["trust"] = trust
        notices += trust_lines(trust)
        return Scoring("relative", aggregate(items), items, aggregate, details=details, notices=notices)

    def _refuse_others(self, reviews: Sequence[Mapping[str, Any]], records: Any) -> None:
        """Raise DataError for reviews of other answers than these, as far as both say."""
        own = {str(record["question_id"]): record.get("answer_id") for record in records}
        for given in reviews:
            answer_id = own.get(str(given["question_id"]))
            if answer_id is not None and given.get("answer2_id", answer_id) != answer_id:
                raise DataError(
                    f"the review of question {given['question_id']} is of answer {given['answer2_id']}, "
                    f"not of {answer_id}",
                    remedy="Give the reviews of these answers.",
                )


def _item(question: Question, record: Mapping[str, Any]) -> Item:
    first, second = (float(score) for score in scores_of(record))
    return Item(
        question.id,
        max(0.0, second) / BEST_SCORE,
        question.cluster,
        str(record.get("category", question.category)),
        prediction=str(record.get("content", "")),
        extra={"reference": first, "model": second},
    )


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the relative score, overall and by category, and both means times 10.

    As in the original, means have 3 decimals before they are divided.
    """
    groups: dict[str, list[Item]] = {"": list(items)}
    for item in items:
        groups.setdefault(f"{item.category}/", []).append(item)
    figures: dict[str, float] = {}
    for name in sorted(groups):
        first, second = (
            round(sum(item.extra[side] for item in groups[name]) / max(1, len(groups[name])), 3)
            for side in ("reference", "model")
        )
        figures[f"{name}relative"] = 100 * second / first if first else math.nan
        figures[f"{name}reference"], figures[f"{name}model"] = 10 * first, 10 * second
    return figures


BENCHMARKS = (LlavaBench(),)
