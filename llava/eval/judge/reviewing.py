"""Have pairs of answers reviewed into a file that can be gone on with, and say how far to believe it.

OUTPUT                    the original's records, in the order of the questions; appended
OUTPUT.replies.jsonl      every reply of the judge (`replies.py`)
OUTPUT.swapped.jsonl      the same reviews with the answers shown the other way round, on request
OUTPUT.report.json        means, what could not be read, order effect, drift, cost
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, note
from llava.errors import DataError, RemoteError
from llava.eval.judge.judge import Judge, Verdict
from llava.eval.judge.options import Judging
from llava.eval.judge.review import (
    MAX_TOKENS,
    Pair,
    Pairs,
    Scores,
    read_as_original,
    read_reviews,
    read_scores,
)
from llava.eval.judge.summary import summarise
from llava.eval.judge.trust import anchor_items, beside, drift, order_effect, report_path, trust_lines
from llava.eval.questions import QuestionId
from llava.files import write_json, write_jsonl
from llava.journal import Journal, cut_torn_line

Record = dict[str, Any]


@dataclass
class Outcome:
    """What a pass over the pairs came to."""

    records: list[Record]
    failed: dict[str, str] = field(default_factory=dict)
    """By question, why the judge gave no reply; asked again next time."""


def replies_path(output: Path) -> Path:
    """Return where the judge's replies are kept unless told otherwise."""
    return beside(output, "replies.jsonl")


def review(
    found: Pairs,
    judge: Judge,
    output: Path,
    judging: Judging | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
) -> int:
    """Review what is not reviewed yet, write the report, and return the exit code.

    Raises DataError when `output` holds reviews of other answers, RemoteError when the judge fails several
    times in a row, UsageError when the budget is used up; what was asked until then is kept.
    """
    judging = judging or Judging()
    pairs, missing = found
    if not pairs:
        raise DataError("no question has both answers", remedy="Check the files.")
    # A store that cannot be used is worth knowing before anything is asked.
    anchor = None if judging.anchor is None else anchor_items(judging, read_scores)
    passes = [(output, False)] + ([(beside(output, "swapped.jsonl"), True)] if judging.swaps else [])
    done = [taken_up(path, pairs) for path, _ in passes]
    judge.announce(
        [
            pair.request(is_swapped=is_swapped, max_tokens=max_tokens)
            for (_, is_swapped), known in zip(passes, done, strict=True)
            for pair in pairs
            if pair.number not in known
        ]
    )
    outcomes = [
        _pass(
            judge, pairs, known, path,
            is_swapped=is_swapped, max_tokens=max_tokens, is_compat=judging.is_compat,
        )
        for (path, is_swapped), known in zip(passes, done, strict=True)
    ]  # fmt: skip
    records = outcomes[0].records
    summary = summarise(records, compat=judging.is_compat)
    report: Record = {
        "num_questions": len(pairs) + len(missing),
        "missing": list(missing),
        "failed": outcomes[0].failed,
        "unread": list(summary.unread),
        "summary": summary.to_dict(),
    }
    if judging.swaps:
        report["order"] = order_effect(records, outcomes[1].records)
    if anchor is not None:
        report["drift"] = drift(judge, anchor, read_scores)
    notices = [*summary.notices, *_lost(missing, outcomes), *trust_lines(report)]
    report["judge"] = judge.describe()
    write_json(report_path(output), report | {"notices": notices})
    for notice in notices:
        note(f"note: {notice}")
    is_whole = not missing and not summary.unread and not any(outcome.failed for outcome in outcomes)
    return EXIT_OK if is_whole else EXIT_WITH_FAILURES


def _lost(missing: Sequence[QuestionId], outcomes: Sequence[Outcome]) -> list[str]:
    """Say which questions have no review, and why."""
    lines = [f"{len(missing)} questions lack an answer: not judged ({missing[0]}, ...)"] if missing else []
    for outcome in outcomes:
        lines += [f"question {identity}: no reply: {cause}" for identity, cause in outcome.failed.items()]
    return lines


def taken_up(path: Path, pairs: Sequence[Pair]) -> dict[int, Record]:
    """Return the reviews that a file has already, by number of the question.

    Raises DataError for a review of another question or of other answers.
    """
    if not path.exists():
        return {}
    cut_torn_line(path)
    wanted = {str(pair.question.id): pair for pair in pairs}
    known: dict[int, Record] = {}
    for record in read_reviews(path):
        pair = wanted.get(str(record["question_id"]))
        ids = ("answer1_id", "answer2_id")
        own = {} if pair is None else pair.record("", None)
        if pair is None or any(record.get(name, own[name]) != own[name] for name in ids):
            raise DataError(
                f"{path} has a review of question {record['question_id']!r} for other answers",
                remedy="Give another --output, or the answers it was made with.",
            )
        known[pair.number] = record
    return known


def _pass(
    judge: Judge,
    pairs: Sequence[Pair],
    known: dict[int, Record],
    path: Path,
    *,
    is_swapped: bool,
    max_tokens: int,
    is_compat: bool,
) -> Outcome:
    """Review the pairs that are not known, in their order, and keep each as soon as it is there."""
    read = read_as_original if is_compat else read_scores

    def ask(pair: Pair) -> Verdict[Scores]:
        return judge.ask_until(pair.request(is_swapped=is_swapped, max_tokens=max_tokens), read)

    outcome = Outcome([])
    with Journal(path, sync_interval_s=0) as journal:
        order = list(known)
        for pair, verdict in judge.map(ask, [pair for pair in pairs if pair.number not in known]):
            if isinstance(verdict, RemoteError):
                outcome.failed[str(pair.question.id)] = str(verdict)
                continue
            scores = verdict.value
            if is_swapped and scores is not None:
                scores = scores[1], scores[0]
            known[pair.number] = pair.record(verdict.text, scores) | (
                {"is_swapped": True} if is_swapped else {}
            )
            journal.append(known[pair.number])
            order.append(pair.number)
    outcome.records = [known[number] for number in sorted(known)]
    if order != sorted(order):
        write_jsonl(path, outcome.records)
    return outcome
