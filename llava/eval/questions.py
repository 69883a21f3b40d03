"""What a model is asked, and the original's question files.

{"question_id", "image", "text", "category"}        one JSON object a line; `image` is optional
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.files import read_jsonl

QuestionId = int | str
AnswerKey = tuple[QuestionId, int]
"""Question and round; the round is 0 where a question is asked once."""

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True)
class Question:
    """One question, as the model gets it."""

    id: QuestionId
    text: str
    """What the user says, with the instruction about the answer's form and without picture markers."""
    image: str | None = None
    """Path of the picture, relative to the benchmark's picture folder; None asks without one."""
    prompt: str | None = None
    """What the answers file records as prompt where that is not `text`."""
    category: str = "default"
    round: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the answers file of this benchmark records besides, in order: after `text`, before `answer_id`."""
    has_round: bool = False
    """Whether the answers file records the round."""

    @property
    def key(self) -> AnswerKey:
        """What an answer is matched by."""
        return self.id, self.round

    @property
    def cluster(self) -> str:
        """What questions share that are not independent of each other: the picture, else the question."""
        return self.image if self.image is not None else f"question {self.id}"


def read_questions(path: Path) -> list[Question]:
    """Read a question file of the original's form.

    An id may come twice with other texts (MME's and TextVQA's are those of pictures). Raises FileError when
    it cannot be read, DataError naming the line when it breaks the form or a question comes twice.
    """
    questions: list[Question] = []
    seen: dict[tuple[QuestionId, str, str | None], int] = {}
    for number, record in read_jsonl(path):
        question = _question_of(record, f"{path} line {number}")
        first = seen.setdefault((question.id, question.text, question.image), number)
        if first != number:
            raise DataError(
                f"{path} line {number}: question {question.id!r} is that of line {first}",
                remedy="Ask every question once.",
            )
        questions.append(question)
    if not questions:
        raise DataError(f"{path} holds no questions")
    return questions


def _question_of(record: object, where: str) -> Question:
    if not isinstance(record, dict):
        raise DataError(f"{where} is not an object", remedy='Write {"question_id": ..., "text": ...}.')
    identity, text, image = record.get("question_id"), record.get("text"), record.get("image")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise DataError(f"{where}: question_id is {identity!r}", remedy="Give a text or a whole number.")
    if not isinstance(text, str) or not text:
        raise DataError(f"{where}: text is {text!r}", remedy="Give the question.")
    if image is not None and (not isinstance(image, str) or not image):
        raise DataError(f"{where}: image is {image!r}", remedy="Give a path, or leave it out.")
    return Question(id=identity, text=text, image=image, category=str(record.get("category", "default")))
