"""Put questions, answers and reviews of a table together for LLaVA's static viewer (webpage/data.json).

The original's command of this name, which had fixed paths: they are the defaults. A table is question.jsonl,
answer/answer_MODEL.jsonl for each model, and review/review_MODEL_BASE.jsonl where a judge compared a model
with another. Models are called by the first part of their name, as the viewer does ("vicuna-13b": vicuna).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, OptionParser, note, run, say
from llava.errors import DataError, FileError
from llava.eval.answers import match, read_answers
from llava.eval.judge.review import read_reviews
from llava.eval.questions import read_questions
from llava.files import write_json

_SCORE_LINE = re.compile(r"[\d.]+[, ]+[\d.]+\s*$")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and return the exit code."""
    return run(lambda: _write(sys.argv[1:] if argv is None else argv))


def _write(argv: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m llava.eval.generate_webpage_data_from_table", description=__doc__)
    parser.add_argument("--tables", type=Path, default=Path("table"), metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("webpage/data.json"), help="(%(default)s)")
    args = parser.parse_all(argv)
    data, notices = webpage_data(args.tables)
    write_json(args.output, data)
    for notice in notices:
        note(f"note: {notice}")
    say(f"{len(data['questions'])} questions, {len(data['models'])} models: {args.output}")
    return EXIT_OK


def webpage_data(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what the viewer reads, and what is missing; raises FileError, DataError."""
    questions = read_questions(folder / "question.jsonl")
    files = {path.stem.removeprefix("answer_"): path for path in sorted(folder.glob("answer/answer_*.jsonl"))}
    if not files:
        raise FileError(f"{folder} has no answer/answer_MODEL.jsonl", remedy="Give the folder with --tables.")
    names = {model: model.split("-")[0] for model in files}
    if len(set(names.values())) < len(names):
        names = {model: model for model in files}
    answers = {names[model]: match(questions, read_answers(path)) for model, path in files.items()}
    reviews = {
        names[model]: {str(own["question_id"]): own for own in read_reviews(path)}
        for path in sorted(folder.glob("review/review_*.jsonl"))
        if (model := path.stem.removeprefix("review_").split("_")[0]) in names
    }
    records = []
    for question in questions:
        own = {name: found[str(question.id)] for name, found in reviews.items() if str(question.id) in found}
        records.append(
            {
                "id": question.id,
                "category": question.category,
                "question": question.text,
                "answers": {
                    name: text for name, m in answers.items() if (text := m.text(question)) is not None
                },
                "evaluations": {name: _evaluation(record) for name, record in own.items()},
                "scores": {name: record.get("score", record.get("tuple")) for name, record in own.items()},
            }
        )
    notices = [f"{name}: {notice}" for name, found in answers.items() for notice in found.notices]
    return {"questions": records, "models": list(answers)}, notices


def _evaluation(record: Mapping[str, Any]) -> str:
    """Return the text of a review without its line of scores, the assistants in bold."""
    text = record.get("text", record.get("content"))
    if not isinstance(text, str):
        raise DataError(f"review of question {record['question_id']!r} has no text")
    first, _, rest = text.strip().partition("\n")
    text = rest if _SCORE_LINE.match(first) else text.strip()
    return re.sub(r"Assistant ([12])\b", r"**Assistant \1**", text)


if __name__ == "__main__":
    sys.exit(main())
