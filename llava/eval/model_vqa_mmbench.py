"""`python -m llava.eval.model_vqa_mmbench`: MMBench's table of questions, pictures inside it.

The original's command of this name: its options, defaults and records.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.command import OptionParser, run
from llava.eval.generation import Command
from llava.eval.question_files import read_mmbench_questions

COMMAND = Command(
    name="model_vqa_mmbench",
    description=__doc__,
    read=lambda args: read_mmbench_questions(
        args.question_file,
        language=args.lang,
        asks_for_letter=args.single_pred_prompt,
        all_rounds=args.all_rounds,
    ),
    adds_tags=True,
)


def add_arguments(parser: OptionParser) -> None:
    """Declare what this command has besides."""
    parser.add_argument("--all-rounds", action="store_true", help="ask once for every order of the options")
    parser.add_argument(
        "--single-pred-prompt", action="store_true", help="end with the instruction to answer by a letter"
    )
    parser.add_argument("--lang", choices=("en", "cn"), default="en", help="its language (%(default)s)")


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run(lambda: COMMAND.run(sys.argv[1:] if argv is None else argv, add_arguments=add_arguments))


if __name__ == "__main__":
    sys.exit(main())
