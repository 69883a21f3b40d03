"""Prints SEED-Bench's accuracies and writes its upload, as the original's script of this name."""

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
    parser = OptionParser(prog="convert_seed_for_submission.py", description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", type=Path, required=True, help="the answers")
    parser.add_argument("--result-upload-file", type=Path, required=True)

    def work() -> int:
        args = parser.parse_all(argv)
        records = read_answers(args.result_file)
        files = Files(Path(), Path(), annotations=args.annotation_file)
        benchmark = get_benchmark("seed")
        scoring = benchmark.score(files, records)
        for number, name in scoring.details["types"].items():
            if f"type/{number}" in scoring.figures:
                say(f"{name}: {scoring.figures[f'type/{number}']:.2f}%")
        say(f"Total accuracy: {scoring.value:.2f}%")
        for kind in ("image", "video"):
            if kind in scoring.figures:
                say(f"{kind} accuracy: {scoring.figures[kind]:.2f}%")
        benchmark.export(files, records, args.result_upload_file)
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
