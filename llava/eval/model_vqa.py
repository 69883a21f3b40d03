"""`python -m llava.eval.model_vqa`: questions about pictures, long answers (LLaVA-Bench, MM-Vet).

The original's command of this name: its options, defaults and records. InternVL's version cropped pictures
whatever the checkpoint says; ours follows the checkpoint, `--compat` crops.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.command import run
from llava.eval.generation import Command
from llava.eval.questions import read_questions

COMMAND = Command(
    name="model_vqa",
    description=__doc__,
    read=lambda args: read_questions(args.question_file),
    never_padded=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the questions and return the exit code."""
    return run(lambda: COMMAND.run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
