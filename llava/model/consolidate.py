"""`python -m llava.model.consolidate`: write a checkpoint again as safetensors (the original's tool).

Differs where the original was wrong: the vision tower's weights are kept, the dtype is kept unless --dtype is
given (it was always float16), and projector and LoRA checkpoints are merged with --base.
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
    parser = OptionParser(prog="python -m llava.model.consolidate", description=__doc__)
    parser.add_argument("--src", required=True, metavar="PATH", help="checkpoint")
    parser.add_argument("--dst", required=True, metavar="PATH", help="new folder for the result")
    parser.add_argument("--base", metavar="PATH", help="language model under a projector or LoRA checkpoint")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default: as stored)")
    return parser


def _run(args: argparse.Namespace) -> int:
    from llava.model.merging import consolidate

    consolidate(args.src, args.dst, base=args.base, dtype=args.dtype)
    say(f"Wrote {args.dst}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
