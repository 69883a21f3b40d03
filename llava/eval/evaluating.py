"""`llava eval pope mme ...`: each benchmark answered, scored and exported, and one table of all of them."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.command import EXIT_INTERRUPTED, EXIT_OK, EXIT_WITH_FAILURES, note, say
from llava.errors import FileError, LlavaError, UsageError
from llava.eval import steps
from llava.eval.answers import read_answers
from llava.eval.benchmark import BENCHMARKS, Benchmark, Published
from llava.eval.runs import ANSWERS, Run, store_score
from llava.eval.steps import Chosen

if TYPE_CHECKING:
    from llava.eval.answering import Answerer

EXPORT = "submission"
DESCRIBED_FILES = (
    "questions", "images", "annotations", "context", "answers", "output", "reviews", "anchor"
)  # fmt: skip


@dataclass
class Row:
    """What a benchmark came to."""

    benchmark: Benchmark
    run: Run | None = None
    export: Path | None = None
    problem: str = ""
    """Why it has no score."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        record = dict(self.run.record) if self.run is not None else {"benchmark": self.benchmark.name}
        own = {"folder": str(self.run.folder)} if self.run is not None else {}
        export = {} if self.export is None else {"export": str(self.export)}
        return record | own | export | ({"problem": self.problem} if self.problem else {})


def evaluate(args: argparse.Namespace, names: Sequence[str]) -> int:
    """Evaluate the benchmarks, print one table, and return the exit code."""
    is_all = "all" in names
    names = BENCHMARKS if is_all else names
    given = [f"--{name}" for name in DESCRIBED_FILES if getattr(args, name) is not None]
    if given and len(names) > 1:
        raise UsageError(f"{', '.join(given)} is for one benchmark", remedy="Name one at a time.")
    rows, chosen = [], []
    for name in names:
        one = steps.choose(args, name)
        try:
            # Before a model is loaded: what is missing is worth knowing at once.
            one.questions(args.limit)
        except FileError as error:
            if not is_all:
                raise
            rows.append(Row(one.benchmark, problem=str(error)))
        else:
            chosen.append(one)
    code = EXIT_WITH_FAILURES if rows else EXIT_OK
    # A model is loaded once for each picture rule, of which --compat has two.
    for aspect in dict.fromkeys(steps.aspect_of(args, one.benchmark) for one in chosen):
        answerer = steps.open_model(args, aspect)
        try:
            for one in chosen:
                if steps.aspect_of(args, one.benchmark) != aspect:
                    continue
                own, row = _evaluate(args, one, answerer)
                if own == EXIT_INTERRUPTED:
                    return own
                code = max(code, own)
                rows.append(row)
        finally:
            answerer.close()
    _show(rows, as_json=args.json)
    return code


def _evaluate(args: argparse.Namespace, chosen: Chosen, answerer: Answerer) -> tuple[int, Row]:
    """Answer, score and export one benchmark; returns the exit code and the row."""
    folder = steps.run_folder(args, chosen)
    note(f"{chosen.benchmark.title}:")
    code = steps.ask(args, chosen, answerer, folder / ANSWERS)
    row = Row(chosen.benchmark)
    if code == EXIT_INTERRUPTED:
        return code, row
    records = read_answers(folder / ANSWERS)
    try:
        chosen = steps.judged(args, chosen, folder / ANSWERS)
        scoring = chosen.score(records, args.limit, is_compat=args.compat)
    except UsageError as error:
        # References that are on a server, or a judge that was not named.
        row.problem = str(error)
    else:
        row.run = store_score(
            folder,
            scoring,
            benchmark=chosen.benchmark,
            source=chosen.source,
            files=chosen.files,
            model=steps.model_name(args),
            answers=folder / ANSWERS,
            is_compat=args.compat,
        )
    if type(chosen.benchmark).export is not Benchmark.export:
        try:
            row.export = chosen.benchmark.export(chosen.files, records, folder / EXPORT)
        except LlavaError as error:
            note(f"note: no submission file: {error}")
    return code, row


def _show(rows: Sequence[Row], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps([row.to_dict() for row in rows], ensure_ascii=False))
        return
    for line in table(rows):
        say(line)
    for row in rows:
        for notice in [row.problem] if row.problem else (row.run.record["notices"] if row.run else []):
            say(f"{row.benchmark.title}: {notice}")
        if row.export is not None:
            say(f"{row.benchmark.title}: to send in: {row.export}")


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table: score, interval, number of questions, published row."""
    cells = [["benchmark", "figure", "score", "95 % interval", "questions", "published"]]
    for row in rows:
        if row.run is None:
            cells.append([row.benchmark.title, "", "-", "", "", _published(row.benchmark, None)])
            continue
        found, run = row.run.interval, row.run
        spread = f"{found['low']:.1f} to {found['high']:.1f}" if found is not None else ""
        figure, count = str(run.record["headline"]), str(run.record["num_items"])
        beside = _published(row.benchmark, run.model)
        cells.append([row.benchmark.title, figure, f"{run.value:.1f}", spread, count, beside])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return ["  ".join(line).rstrip() for line in padded]


def _published(benchmark: Benchmark, model: str | None) -> str:
    """Return the published row that goes with a model: that of the most similar name."""
    row = published_row(benchmark, model)
    return "" if row is None else f"{row.value:g} ({row.model})"


def published_row(benchmark: Benchmark, model: str | None) -> Published | None:
    """Return the published row of the model whose name is most like `model`; None where there is none."""
    if not benchmark.published:
        return None
    wanted = (model or "").lower()
    return max(
        benchmark.published, key=lambda row: difflib.SequenceMatcher(None, wanted, row.model.lower()).ratio()
    )
