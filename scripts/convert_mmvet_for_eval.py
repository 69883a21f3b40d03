"""Writes what MM-Vet's grader reads from an answers file, as the original's script of this name."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, say
from llava.command import run as run_command
from llava.eval.answers import read_answers
from llava.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="convert_mmvet_for_eval.py", description=__doc__)
    parser.add_argument("--src", type=Path, required=True, help="the answers")
    parser.add_argument("--dst", type=Path, required=True)

    def work() -> int:
        args = parser.parse_all(argv)
        answers = {f"v1_{record['question_id']}": record["text"] for record in read_answers(args.src)}
        write_text(args.dst, json.dumps(answers, indent=2))
        say(f"{len(answers)} answers: {args.dst}")
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
