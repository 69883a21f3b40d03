"""Answer files: the original's records, read and matched with questions by id.

    {"question_id", ["round_id",] "prompt", "text", [...extra,] "answer_id", "model_id", "metadata"}

one JSON object a line. Where an id appears twice the last line counts. What is missing, foreign or doubled
is counted and said (`Matching.notices`), never dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shortuuid

from llava.errors import DataError
from llava.eval.questions import AnswerKey, Question
from llava.files import read_text

MAX_IDS_SHOWN = 5


def answer_record(
    question: Question, text: str, *, model_id: str, answer_id: str | None = None, **metadata: Any
) -> dict[str, Any]:
    """Return the record of one answer, keys in the original's order.

    answer_id: None draws a fresh one, 22 characters as the original's.
    """
    return {
        "question_id": question.id,
        **({"round_id": question.round} if question.has_round else {}),
        "prompt": question.text if question.prompt is None else question.prompt,
        "text": text,
        **question.extra,
        "answer_id": answer_id or shortuuid.uuid(),
        "model_id": model_id,
        "metadata": metadata,
    }


def answer_id_of(question: Question, settings: str) -> str:
    """Return the id of the answer to `question` by a model and settings that `settings` stands for.

    The same question, asked alike, has the same id in every run: 22 characters of shortuuid's alphabet.
    """
    asked = [question.id, question.round, question.text, question.image, settings]
    digest = hashlib.sha256(json.dumps(asked).encode()).digest()
    return shortuuid.encode(uuid.UUID(bytes=digest[:16]))


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Return the records of an answers file in order; raises FileError, DataError naming the line."""
    return list(parse_answers(read_text(path).split("\n"), source=str(path)))


def parse_answers(lines: Iterable[str], *, source: str) -> Iterator[dict[str, Any]]:
    """Yield the record of each line that is not empty; raises DataError naming source and line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{source} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or "question_id" not in record or "text" not in record:
            raise DataError(
                f"{source} line {number} is no answer", remedy='Lines hold "question_id" and "text".'
            )
        yield record


def key_of(record: Mapping[str, Any]) -> AnswerKey:
    """Return what a record is matched by."""
    return record["question_id"], record.get("round_id", 0)


@dataclass(frozen=True)
class Matching:
    """Answers by question, and what did not match."""

    records: Mapping[AnswerKey, dict[str, Any]]
    """The last record of each question that has one."""
    missing: Sequence[AnswerKey]
    foreign: Sequence[AnswerKey]
    doubled: Sequence[AnswerKey]

    def text(self, question: Question) -> str | None:
        """Return the answer to a question, None where there is none."""
        record = self.records.get(question.key)
        return None if record is None else str(record["text"])

    @property
    def notices(self) -> list[str]:
        """What to tell the person who reads the score."""
        parts = (
            (self.missing, "have no answer", "counted as wrong"),
            (self.foreign, "answers belong to no question", "not counted"),
            (self.doubled, "questions are answered more than once", "the last answer counts"),
        )
        return [f"{len(keys)} {what} ({_shown(keys)}): {how}" for keys, what, how in parts if keys]


def match(questions: Sequence[Question], records: Iterable[dict[str, Any]]) -> Matching:
    """Match answers with questions by id and round; an id that is a number matches the same one as text."""
    keys = {_plain(question.key): question.key for question in questions}
    found: dict[AnswerKey, dict[str, Any]] = {}
    foreign: list[AnswerKey] = []
    doubled: dict[AnswerKey, None] = {}
    for record in records:
        key = keys.get(_plain(key_of(record)))
        if key is None:
            foreign.append(key_of(record))
            continue
        if key in found:
            doubled[key] = None
        found[key] = record
    missing = [question.key for question in questions if question.key not in found]
    return Matching(found, missing, foreign, list(doubled))


def _plain(key: AnswerKey) -> tuple[str, int]:
    return str(key[0]), key[1]


def _shown(keys: Sequence[AnswerKey]) -> str:
    shown = ", ".join(str(identity) for identity, _ in keys[:MAX_IDS_SHOWN])
    return shown + (", ..." if len(keys) > MAX_IDS_SHOWN else "")
