"""`python -m llava.model.make_delta`: target - base = delta (the original's tool and options).

Differs where the original was wrong: projectors of any form, no question asked at the terminal, nothing
half-written, and the weights are never held as a whole. Says how exactly the delta gives the target back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OptionParser, say
from llava.command import run as run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _run(_parser().parse_all(argv)))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.model.make_delta", description=__doc__)
    parser.add_argument(
        "--base-model-path", "--base", required=True, metavar="PATH", help="base model, such as LLaMA"
    )
    parser.add_argument(
        "--target-model-path", "--target", required=True, metavar="PATH", help="model trained from the base"
    )
    parser.add_argument(
        "--delta-path", "--delta", required=True, metavar="PATH", help="new folder for the result"
    )
    parser.add_argument("--hub-repo-id", metavar="ID", help="also put the delta on the hub under this id")
    return parser


def _run(args: argparse.Namespace) -> int:
    from llava.model.delta import make_delta, upload

    exactness = make_delta(args.base_model_path, args.target_model_path, args.delta_path)
    say(f"Wrote {args.delta_path}: {exactness.describe()}.")
    if args.hub_repo_id is not None:
        upload(Path(args.delta_path), args.hub_repo_id)
        say(f"Put it on the hub as {args.hub_repo_id}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
