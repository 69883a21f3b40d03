"""Writes the answers of MME as its official scorer reads them, as the original's script of this name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, say
from llava.command import run as run_command
from llava.eval.answers import read_answers
from llava.eval.benchmark import get_benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="convert_answer_to_mme.py", description=__doc__)
    parser.add_argument("--experiment", required=True, help="name of the answers, and of the result")
    parser.add_argument("--dir", type=Path, default=Path("."), help="folder of MME's data (%(default)s)")

    def work() -> int:
        args = parser.parse_all(argv)
        records = read_answers(args.dir / "answers" / f"{args.experiment}.jsonl")
        benchmark = get_benchmark("mme")
        files = benchmark.files(args.dir.parent).over(annotations=args.dir / "MME_Benchmark_release_version")
        target = args.dir / "eval_tool" / "answers" / args.experiment
        benchmark.export(files, records, target)
        say(str(target))
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
