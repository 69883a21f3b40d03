"""`python -m llava.eval.model_vqa_science`: ScienceQA's questions, with and without pictures.

The original's command of this name: its options, defaults and records. `--answer-prompter` asked a second
time, and never worked there; it is refused. `--compat` crops pictures as the original did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.command import OptionParser, run
from llava.errors import UsageError
from llava.eval.generation import Command
from llava.eval.question_files import read_science_questions
from llava.eval.questions import Question

COMMAND = Command(
    name="model_vqa_science",
    description=__doc__,
    read=lambda args: _read(args),
    conv_mode="llava_v0",
    question_file="tables/question.json",
    samples_by_nucleus=False,
    never_padded=True,
)


def add_arguments(parser: OptionParser) -> None:
    """Declare what this command has besides."""
    parser.add_argument("--answer-prompter", action="store_true", help="refused: it never worked")
    parser.add_argument(
        "--single-pred-prompt", action="store_true", help="end with the instruction to answer by a letter"
    )


def _read(args: object) -> list[Question]:
    if getattr(args, "answer_prompter", False):
        raise UsageError(
            "--answer-prompter stopped the original with a TypeError", remedy="Use --single-pred-prompt."
        )
    return read_science_questions(args.question_file, asks_for_letter=args.single_pred_prompt)  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run(lambda: COMMAND.run(sys.argv[1:] if argv is None else argv, add_arguments=add_arguments))


if __name__ == "__main__":
    sys.exit(main())
