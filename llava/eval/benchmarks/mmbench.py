"""MMBench and MMBench-CN: choices asked with their options in every rotation; all must be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava.errors import DataError, DependencyError, UsageError
from llava.eval.answers import match
from llava.eval.benchmark import Benchmark, Figures, Files, Item, Scoring
from llava.eval.metrics.mmbench import infer_option
from llava.eval.published import published_for
from llava.eval.question_files import OPTION_LETTERS, read_mmbench_questions, read_mmbench_table
from llava.eval.questions import Question
from llava.files import atomic_path

if TYPE_CHECKING:
    import pandas

_ROTATION = 1_000_000
"""Rotation k of question i has the index i + k times this."""
_NOT_SENT = ("hint", "category", "source", "image", "comment", "l2-category")
_PREDICTION_COLUMN = 6
_ABILITIES = {
    "attribute_reasoning": "AR",
    "coarse_perception": "CP",
    "finegrained_perception (cross-instance)": "FP-C",
    "finegrained_perception (instance-level)": "FP-S",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
}


class MmBench(Benchmark):
    """One language of MMBench."""

    max_new_tokens = 1024

    def __init__(self, name: str, title: str, folder: str, table: str, language: Literal["en", "cn"]) -> None:
        """`folder`, `table`: where the original's scripts look for the TSV."""
        self.name, self.title = name, title  # type: ignore[misc]
        self.download = f"Put {table} of the MMBench authors in {folder}."  # type: ignore[misc]
        self.published = published_for(name)  # type: ignore[misc]
        self._path, self._language = Path(folder) / table, language

    def files(self, root: Path) -> Files:
        """Return the layout of the original; the table holds questions, pictures and (dev) answers."""
        path = root / self._path
        return Files(path, path.parent, annotations=path)

    def questions(self, files: Files) -> list[Question]:
        """Read the questions with their pictures."""
        self.require(files.questions)
        return read_mmbench_questions(files.questions, language=self._language)

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score dev without a judge; raises UsageError where the table has no answers, as that of test."""
        self.require(files.annotations)
        assert files.annotations is not None
        return score_table(read_table(files.annotations), records)

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write the spreadsheet that the server takes."""
        self.require(files.annotations)
        assert files.annotations is not None
        table = upload_table(read_table(files.annotations), records)
        try:
            with atomic_path(target) as temporary:
                table.to_excel(temporary, index=False, engine="openpyxl")
        except ImportError:
            raise DependencyError.of_extra("openpyxl", "eval", "MMBench's spreadsheet") from None
        return target


def read_table(path: Path) -> pandas.DataFrame:
    """Read the table: `index` as a number, all else as text; raises FileError, DataError."""
    table = read_mmbench_table(path)
    try:
        table["index"] = table["index"].astype(int)
    except ValueError as error:
        raise DataError(f"{path}: an index is no number: {error}") from None
    return table


def upload_table(table: pandas.DataFrame, records: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Return what is sent in: the table without what the server knows, with a column of predictions.

    Raises DataError where no answer belongs to the table, or some are of a later round (--all-rounds).
    """
    if len(_first_rounds(records)) < len(records):
        raise DataError(
            "these answers are of --all-rounds: letters of later rounds mean other options",
            remedy="Answer without --all-rounds.",
        )
    texts = {str(record["question_id"]): str(record["text"]) for record in records}
    known = {str(index) for index in table["index"]}
    if not known & set(texts):
        raise DataError("no answer belongs to a question of the table", remedy="Give the answers' own table.")
    result = table.drop(columns=[name for name in _NOT_SENT if name in table])
    predictions = [texts.get(str(index)) for index in table["index"]]
    result.insert(min(_PREDICTION_COLUMN, result.shape[1]), "prediction", predictions)
    return result


def score_table(table: pandas.DataFrame, records: Sequence[dict[str, Any]]) -> Scoring:
    """Score answers to the rows of a table with references: a question is right if all rotations are."""
    if "answer" not in table:
        raise UsageError(
            "MMBench: this table has no answers, they are on the server",
            remedy="Write the file to send in with llava eval export.",
        )
    first_rounds = _first_rounds(records)
    matching = match([Question(int(index), "") for index in table["index"]], first_rounds)
    groups: dict[int, list[tuple[dict[str, Any], bool]]] = {}
    for row in table.to_dict("records"):
        options = {own: row[own] for own in OPTION_LETTERS if own in row and isinstance(row[own], str)}
        text = matching.text(Question(row["index"], "")) or ""
        is_right = infer_option(text, options) == row["answer"]
        groups.setdefault(row["index"] % _ROTATION, []).append((row, is_right))
    items = []
    for index, rows in groups.items():
        first, is_first_right = rows[0]
        ability = first.get("l2-category")
        items.append(
            Item(
                index,
                float(all(is_right for _, is_right in rows)),
                cluster=f"question {index}",
                category=str(first.get("category", "default")),
                prediction=matching.text(Question(first["index"], "")),
                reference=first["answer"],
                extra={
                    "ability": _ABILITIES.get(str(ability), ability),
                    "rows": len(rows),
                    "right_rows": sum(is_right for _, is_right in rows),
                    "first": float(is_first_right),
                },
            )
        )
    figures = aggregate(items)
    details = {"per_question": {str(item.id): int(item.score) for item in items}}
    notices = list(matching.notices)
    if later := len(records) - len(first_rounds):
        notices.append(f"{later} answers are of later rounds (--all-rounds): only the first round is scored")
    return Scoring("score", figures, items, aggregate, details=details, notices=notices)


def _first_rounds(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if not record.get("round_id")]


def aggregate(items: Sequence[Item]) -> Figures:
    """Return shares of questions: overall, by ability and category; "score" is the overall one in percent."""
    groups: dict[str, list[float]] = {}
    for item in items:
        for name in (item.extra["ability"], item.category):
            if isinstance(name, str) and name != "default":
                groups.setdefault(f"report/{name}", []).append(item.score)
    overall = sum(item.score for item in items) / max(1, len(items))
    num_rows = sum(item.extra["rows"] for item in items)
    return {
        "score": 100 * overall,
        "overall": overall,
        "n_groups": len(items),
        "report/Overall": overall,
        **{name: sum(own) / len(own) for name, own in groups.items()},
        "vanilla_all_rows": sum(item.extra["right_rows"] for item in items) / max(1, num_rows),
        "vanilla_first_row_only": sum(item.extra["first"] for item in items) / max(1, len(items)),
    }


BENCHMARKS = (
    MmBench("mmbench", "MMBench", "mmbench", "mmbench_dev_20230712.tsv", "en"),
    MmBench("mmbench-cn", "MMBench-CN", "mmbench_cn", "mmbench_dev_cn_20231003.tsv", "cn"),
)
