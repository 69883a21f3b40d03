"""The three review commands of the original: with its options, and ours of `options.py` beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.command import OptionParser, run
from llava.eval.judge.options import (
    add_anchor_arguments,
    add_judge_arguments,
    add_swap_argument,
    judging_of,
    open_judge,
)
from llava.eval.judge.review import MAX_TOKENS, OWN_RULES, Kind, ReviewFiles, read_pairs
from llava.eval.judge.reviewing import replies_path, review

JUDGES: dict[Kind, str] = {"text": "gpt-4", "visual": "gpt-4-0314", "bench": "gpt-4-0314"}
"""Whom the original asked; OpenAI has retired them."""


def main(kind: Kind, prog: str, description: str, argv: Sequence[str]) -> int:
    """Run a review command and return the exit code."""
    return run(lambda: _review(kind, prog, description, argv))


def _review(kind: Kind, prog: str, description: str, argv: Sequence[str]) -> int:
    parser = OptionParser(prog=prog, description=description.split("\n")[0])
    parser.add_argument("-q", "--question", type=Path, required=True, metavar="FILE", help="questions")
    if kind != "text":
        parser.add_argument(
            "-c", "--context", type=Path, required=True, metavar="FILE", help="of the pictures"
        )
    parser.add_argument(
        "-a", "--answer-list", type=Path, nargs=2, required=True, metavar="FILE", help="reference, then model"
    )
    parser.add_argument(
        "-r", "--rule", type=Path, default=OWN_RULES, metavar="FILE", help="(default: LLaVA's)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="reviews")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="of a review (%(default)s)")
    ours = parser.add_argument_group("ours")
    add_judge_arguments(ours)
    add_anchor_arguments(ours)
    add_swap_argument(ours)
    ours.add_argument("--compat", action="store_true", help="ask once, and average what cannot be read as -1")
    args = parser.parse_all(argv)
    files = ReviewFiles(
        kind, args.question, tuple(args.answer_list), None if kind == "text" else args.context, args.rule
    )
    judging = judging_of(args, swaps=args.swap)
    judge = open_judge(
        args,
        default_model=JUDGES[kind],
        store=replies_path(args.output),
        attempts=1 if args.compat else None,
    )
    try:
        return review(read_pairs(files), judge, args.output, judging, max_tokens=args.max_tokens)
    finally:
        judge.close()
