"""Writes the table that MMBench's server takes, as the original's script of this name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, say
from llava.command import run as run_command
from llava.eval.answers import read_answers
from llava.eval.benchmark import Files, get_benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="convert_mmbench_for_submission.py", description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="the TSV")
    parser.add_argument("--result-dir", type=Path, required=True, help="folder of EXPERIMENT.jsonl")
    parser.add_argument("--upload-dir", type=Path, required=True)
    parser.add_argument("--experiment", required=True, help="name of answers and upload")

    def work() -> int:
        args = parser.parse_all(argv)
        records = read_answers(args.result_dir / f"{args.experiment}.jsonl")
        files = Files(args.annotation_file, Path(), annotations=args.annotation_file)
        target = args.upload_dir / f"{args.experiment}.xlsx"
        args.upload_dir.mkdir(parents=True, exist_ok=True)
        get_benchmark("mmbench").export(files, records, target)
        say(str(target))
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
