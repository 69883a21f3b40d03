"""`python -m llava.eval.model_vqa_loader`: questions about pictures, short answers.

The original's command of this name: its options, defaults and records (VQAv2, GQA, VizWiz, TextVQA, POPE,
MME, SEED-Bench).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.command import run
from llava.eval.generation import Command
from llava.eval.questions import read_questions

COMMAND = Command(
    name="model_vqa_loader",
    description=__doc__,
    read=lambda args: read_questions(args.question_file),
    max_new_tokens=128,
    adds_tags=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run(lambda: COMMAND.run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
