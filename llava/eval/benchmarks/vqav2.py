"""VQAv2: the test split goes to the EvalAI server; val, whose answers are public, is scored here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError, FileError, UsageError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.metrics.evalai import process
from llava.eval.metrics.vqa import vqa_score
from llava.eval.published import published_for
from llava.eval.questions import Question, read_questions
from llava.files import write_text

_DEV, _WHOLE = "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl"
_CHUNK = 1 << 20
_MAX_ENTRY = 1 << 24
_BETWEEN = re.compile(r"[\s,]*")


class Vqav2(Benchmark):
    """Questions that ten people answered in a word or two."""

    name = "vqav2"
    title = "VQAv2"
    download = (
        f"Put {_DEV} and {_WHOLE} of LLaVA's eval.zip in vqav2 and COCO test2015 in vqav2/test2015. To score "
        "val, give --questions and --annotations v2_mscoco_val2014_annotations.json."
    )
    published = published_for("vqav2")

    def files(self, root: Path) -> Files:
        """Return the layout of the original; references of test are on the server."""
        return Files(root / "vqav2" / _DEV, root / "vqav2" / "test2015")

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score answers as the server would score their submission, against public annotations."""
        if files.annotations is None:
            raise UsageError(
                "VQAv2: the references of test are on the server",
                remedy="Write the file to send in with llava eval export, or give --annotations of val.",
            )
        self.require(files.annotations)
        given = {str(record["question_id"]): process(str(record["text"])) for record in records}
        items: list[Item] = []
        asked = []
        for record in stream_list(files.annotations, "annotations"):
            try:
                identity, references = record["question_id"], [own["answer"] for own in record["answers"]]
                kinds = {"question_type": record["question_type"]}
                category, picture = record["answer_type"], str(record["image_id"])
            except (KeyError, TypeError):
                raise DataError(f"{files.annotations}: entry {len(items) + 1} is no annotation") from None
            text = given.get(str(identity))
            score = 0.0 if text is None else vqa_score(text, references)
            items.append(Item(identity, score, picture, category, text, references[0], kinds))
            asked.append(Question(identity, ""))
        if not items:
            raise DataError(f"{files.annotations} holds no annotations")
        figures = {"overall": 100 * sum(item.score for item in items) / len(items)}
        details = {
            "perAnswerType": _means([(item.category, item.score) for item in items]),
            "perQuestionType": _means([(item.extra["question_type"], item.score) for item in items]),
        }
        figures |= {f"perAnswerType/{name}": value for name, value in details["perAnswerType"].items()}
        notices = match(asked, records).notices
        return Scoring("overall", figures, items, None, details=details, notices=notices)

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write the server's list: every question of test2015 in order, "" where none was asked."""
        split = files.questions
        if split.name == _DEV:
            split = split.with_name(_WHOLE)
        self.require(split)
        questions = read_questions(split)
        matching = match(questions, records)
        if not matching.records:
            raise DataError(
                "no answer belongs to a question of the split", remedy=f"Answer those of {split}."
            )
        answers = [
            {"question_id": question.id, "answer": process(matching.text(question) or "")}
            for question in questions
        ]
        write_text(target, json.dumps(answers))
        return target


def _means(scored: Sequence[tuple[str, float]]) -> Figures:
    groups: dict[str, list[float]] = {}
    for name, score in scored:
        groups.setdefault(name, []).append(score)
    return {name: 100 * sum(own) / len(own) for name, own in groups.items()}


def stream_list(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of the list `name` in a JSON object, holding one entry and a little text at a time.

    Raises FileError where there is no such list or it is broken.
    """
    decoder, opening = json.JSONDecoder(), re.compile(rf'"{re.escape(name)}"\s*:\s*\[')
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_CHUNK)
            while (found := opening.search(text)) is None:
                more = stream.read(_CHUNK)
                if not more:
                    raise FileError(f"{path} has no list {name!r}")
                text = text[-_CHUNK:] + more
            place = found.end()
            while True:
                place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
                if text.startswith("]", place):
                    return
                try:
                    entry, place = decoder.raw_decode(text, place)
                except json.JSONDecodeError:
                    # Most likely the entry goes on in the next piece.
                    more = stream.read(_CHUNK)
                    if not more or len(text) - place > _MAX_ENTRY:
                        raise
                    text, place = text[place:] + more, 0
                    continue
                yield entry
    except json.JSONDecodeError as error:
        raise FileError(f"{path} is not JSON, or cut off: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error


BENCHMARKS = (Vqav2(),)
