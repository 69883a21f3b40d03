"""`python -m llava.model.apply_delta`: base + delta = target (the original's tool and options).

Differs where the original was wrong: projectors of any form, no question asked at the terminal, nothing
half-written, and the weights are never held as a whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import OptionParser, say
from llava.command import run as run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _run(_parser().parse_all(argv)))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.model.apply_delta", description=__doc__)
    parser.add_argument(
        "--base-model-path", "--base", required=True, metavar="PATH", help="base model, such as LLaMA"
    )
    parser.add_argument(
        "--target-model-path", "--target", required=True, metavar="PATH", help="new folder for the result"
    )
    parser.add_argument("--delta-path", "--delta", required=True, metavar="PATH", help="delta weights")
    return parser


def _run(args: argparse.Namespace) -> int:
    from llava.model.delta import apply_delta

    target = apply_delta(args.base_model_path, args.delta_path, args.target_model_path)
    say(f"Wrote {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
