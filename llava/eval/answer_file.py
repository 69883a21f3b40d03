"""An answers file in the making: killed at any moment and gone on with, it ends the same to the byte.

    OUTPUT.journal.jsonl    one line a question as it is answered, or as it fails; appended
    OUTPUT                  the original's records in the order of the questions; written when all are through
    OUTPUT.settings.json    model, template, picture rules, sampling: what the answers depend on

The journal goes when every question has its answer. The id of an answer is made of its question and the
settings (`answers.answer_id_of`), so that an answer to another question is known as one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llava
from llava.errors import UsageError
from llava.eval.answers import answer_id_of, answer_record, key_of, read_answers
from llava.eval.questions import Question
from llava.files import atomic_path, read_jsonl, write_json
from llava.journal import Journal, check_settings, cut_torn_line, settings_path

MAX_SHOWN = 3


class AnswerFile:
    """The answers to some questions by one model, as far as they are known."""

    def __init__(
        self,
        path: Path,
        questions: Sequence[Question],
        settings: Mapping[str, object],
        *,
        model_id: str,
        has_prompt: bool = True,
    ) -> None:
        """Take up what is there already.

        has_prompt: whether records hold the prompt; those of the original's `model_qa` do not.

        Raises UsageError when it was made with other settings or answers other questions, FileError when
        it cannot be read.
        """
        self.path = path
        self.settings = dict(settings)
        self._journal_path = path.with_name(path.name + ".journal.jsonl")
        self._questions = questions
        self._model_id = model_id
        self._has_prompt = has_prompt
        self._digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self._texts: dict[str, str] = {}
        self._take_up(self._stored())
        self._journal = Journal(self._journal_path)

    def is_answered(self, question: Question) -> bool:
        """Whether there is an answer; a failure is none."""
        return self._id(question) in self._texts

    def text(self, question: Question) -> str | None:
        """Return the answer to a question, None where there is none."""
        return self._texts.get(self._id(question))

    def begin(self) -> None:
        """Write down the settings; to be called before the first answer is kept."""
        write_json(settings_path(self.path), self.settings | self._description())

    def keep(self, question: Question, text: str) -> None:
        """Keep an answer."""
        self._journal.append(self._record(question, text))
        self._texts[self._id(question)] = text

    def keep_failure(self, question: Question, failure: Mapping[str, object]) -> None:
        """Note why a question has no answer; it is asked again next time."""
        self._journal.append(
            {"question_id": question.id, "round_id": question.round, "image": _short(question.image)}
            | dict(failure)
        )

    def finish(self) -> None:
        """Write the answers file in the order of the questions; the journal goes if none is missing."""
        with atomic_path(self.path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for question in self._questions:
                if (text := self.text(question)) is not None:
                    stream.write(json.dumps(self._record(question, text), ensure_ascii=False) + "\n")
        self.close()
        if len(self._texts) == len(self._questions):
            self._journal_path.unlink()

    def close(self) -> None:
        """Bring what is kept to the disk."""
        self._journal.close()

    def _record(self, question: Question, text: str) -> dict[str, Any]:
        record = answer_record(question, text, model_id=self._model_id, answer_id=self._id(question))
        if not self._has_prompt:
            del record["prompt"]
        return record

    def _stored(self) -> list[dict[str, Any]]:
        """Return the records of earlier runs, of the answers file first."""
        records: list[dict[str, Any]] = []
        for path in (self.path, self._journal_path):
            if path.exists() and not path.is_file():
                raise UsageError(f"{path} is no plain file", remedy="Give another --output.")
        if self.path.exists() and self.path.stat().st_size:
            check_settings(self.path, self.settings)
            records += read_answers(self.path)
        if self._journal_path.exists() and self._journal_path.stat().st_size:
            check_settings(self.path, self.settings)
            cut_torn_line(self._journal_path)
            records += [record for _, record in read_jsonl(self._journal_path) if "text" in record]
        return records

    def _id(self, question: Question) -> str:
        return answer_id_of(question, self._digest)

    def _take_up(self, records: Iterable[dict[str, Any]]) -> None:
        expected = {self._id(question) for question in self._questions}
        now = {question.key: question for question in self._questions}
        foreign: list[str] = []
        for record in records:
            if record["answer_id"] in expected:
                self._texts[record["answer_id"]] = record["text"]
            elif (question := now.get(key_of(record))) is None:
                foreign.append(f"{record['question_id']!r} is not asked now")
            else:
                prompts = record.get("prompt"), self._record(question, "").get("prompt")
                what = "prompt {!r}, now {!r}".format(*prompts)
                foreign.append(f"{question.id!r}: {what if prompts[0] != prompts[1] else 'another picture'}")
        if foreign:
            raise UsageError(
                f"{self.path} answers other questions ({len(foreign)}): {'; '.join(foreign[:MAX_SHOWN])}",
                remedy="Give another --output, or the questions it was made with.",
            )

    def _description(self) -> dict[str, object]:
        """Return what is recorded besides, and may change."""
        texts = json.dumps([[*question.key, question.text] for question in self._questions])
        return {
            "num_questions": len(self._questions),
            "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
            "version": llava.__version__,
        }


def _short(image: str | None) -> str | None:
    return image if image is None or len(image) <= 300 else f"{image[:40]}..."
