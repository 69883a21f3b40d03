"""Grade MM-Vet answers with a judge, and write the original's tables.

Takes the file of scripts/convert_mmvet_for_eval.py. Options are those of MM-Vet's mm-vet_evaluator.py, and
ours of docs/judge.md; its few-shot prompt is read from that file, or from a text file.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, OptionParser, note, run, say
from llava.errors import DataError
from llava.eval.judge import mmvet
from llava.eval.judge.options import add_anchor_arguments, add_judge_arguments, judging_of, open_judge
from llava.eval.judge.summary import unread_notices
from llava.eval.judge.trust import trust_lines
from llava.files import read_json, write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Grade the answers and return the exit code."""
    return run(lambda: _grade(sys.argv[1:] if argv is None else argv))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.eval.eval_mmvet", description=__doc__)
    parser.add_argument(
        "--mmvet_path", type=Path, default=Path("playground/data/eval/mm-vet"), help="(%(default)s)"
    )
    parser.add_argument(
        "--result_file", type=Path, required=True, metavar="FILE", help='{"v1_0": answer, ...}'
    )
    parser.add_argument("--result_path", type=Path, metavar="FOLDER", help="(default: that of --result_file)")
    parser.add_argument("--use_sub_set", action="store_true", help="only the ids of bard_set.json")
    parser.add_argument("--decimal_places", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--num_run", type=int, default=1, help="gradings of each answer (%(default)s)")
    ours = parser.add_argument_group("ours")
    ours.add_argument(
        "--prompt", type=Path, metavar="FILE", help="(default: mm-vet_evaluator.py with the data)"
    )
    ours.add_argument("--compat", action="store_true", help="count what cannot be read as 0")
    ours.add_argument("--json", action="store_true", help="print both tables as JSON")
    add_judge_arguments(ours)
    add_anchor_arguments(ours)
    return parser


def _grade(argv: Sequence[str]) -> int:
    args = _parser().parse_all(argv)
    folder: Path = args.mmvet_path
    subset = folder / "bard_set.json" if args.use_sub_set else None
    references = mmvet.read_references(folder / "mm-vet.json", subset)
    predictions = read_json(args.result_file)
    if not isinstance(predictions, dict):
        raise DataError(
            f"{args.result_file} is no object of answers", remedy="See convert_mmvet_for_eval.py."
        )
    prompt = mmvet.read_prompt(args.prompt or folder / "mm-vet_evaluator.py")
    target: Path = args.result_path or args.result_file.parent
    judging = judging_of(args)
    model = args.judge_model or "gpt-4-0613"
    part = "_bard_set" if args.use_sub_set else ""
    stem = f"{args.result_file.stem}_{Path(model).name}{part}"
    judge = open_judge(args, default_model=model, store=target / f"{stem}-replies.jsonl")
    try:
        grades, found = mmvet.grade_and_check(
            references, predictions, judge, prompt, target / f"{stem}-grade-{args.num_run}runs.json",
            judging, num_run=args.num_run,
        )  # fmt: skip
        notices = _notices(references, grades, compat=args.compat) + trust_lines(found)
    finally:
        judge.close()
    tables = mmvet.tables(
        references, grades, num_run=args.num_run, decimals=args.decimal_places, compat=args.compat
    )
    for name, table in tables.items():
        long = name.replace("_", "-")
        write_text(target / f"{stem}-{long}-score-{args.num_run}runs.csv", _csv(args.result_file.stem, table))
    for notice in notices:
        note(f"note: {notice}")
    for line in [json.dumps(tables)] if args.json else _lines(tables):
        say(line)
    is_whole = len(grades) == len(references) and (args.compat or not mmvet.unread(grades))
    return EXIT_OK if is_whole else EXIT_WITH_FAILURES


def _notices(references: Mapping[str, object], grades: mmvet.Grades, *, compat: bool) -> list[str]:
    notices = [] if compat else unread_notices(mmvet.unread(grades), len(references), "grades")
    if missing := [name for name in references if name not in grades]:
        notices.append(f"{len(missing)} questions have no answer ({missing[0]}, ...): counted as wrong")
    return notices


def _csv(model: str, table: Mapping[str, Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["", *table], [model, *table.values()]])
    return text.getvalue()


def _lines(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for table in tables.values():
        width = max(len(name) for name in table)
        lines += [f"{name:<{width}}  {value}" for name, value in table.items()] + [""]
    return lines[:-1]


if __name__ == "__main__":
    sys.exit(main())
