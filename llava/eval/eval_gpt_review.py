"""Have a judge compare two answers without pictures.

The original's command of this name; docs/judge.md has the steps around it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.eval.judge import review_command
from llava.eval.judge.review import parse_score

__all__ = ["main", "parse_score"]


def main(argv: Sequence[str] | None = None) -> int:
    """Review the answers and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return review_command.main("text", "python -m llava.eval.eval_gpt_review", str(__doc__), words)


if __name__ == "__main__":
    sys.exit(main())
