"""Writes what GQA's official scorer reads from an answers file, as the original's script of this name."""

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
    parser = OptionParser(prog="convert_gqa_for_eval.py", description=__doc__)
    parser.add_argument("--src", type=Path, required=True, help="the answers")
    parser.add_argument("--dst", type=Path, required=True, help="testdev_balanced_predictions.json")

    def work() -> int:
        args = parser.parse_all(argv)
        records = read_answers(args.src)
        get_benchmark("gqa").export(Files(Path(), Path()), records, args.dst)
        say(f"{len(records)} predictions: {args.dst}")
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
