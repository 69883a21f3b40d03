"""`python -m llava.eval.eval_pope`: scores POPE answers with the original's options and words.

Answers are matched with labels by id and picture, or by their place in the file as originally (--compat).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, note, say
from llava.command import run as run_command
from llava.eval.answers import read_answers
from llava.eval.benchmark import Files, get_benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="python -m llava.eval.eval_pope", description=__doc__)
    parser.add_argument("--annotation-dir", type=Path, required=True, help="folder of coco_pope_*.json")
    parser.add_argument("--question-file", type=Path, required=True)
    parser.add_argument("--result-file", type=Path, required=True)
    parser.add_argument("--compat", action="store_true", help="match answers with labels by their place")

    def work() -> int:
        args = parser.parse_all(argv)
        files = Files(args.question_file, Path(), annotations=args.annotation_dir)
        benchmark = get_benchmark("pope")
        score = benchmark.score_as_original if args.compat else benchmark.score
        scoring = score(files, read_answers(args.result_file))
        for notice in scoring.notices:
            note(f"note: {notice}")
        for split in sorted({item.category for item in scoring.items}):
            say(_report(split, {name: scoring.figures[f"{split}/{name}"] for name in _NAMES}))
        return EXIT_OK

    return run_command(work)


_NAMES = ("samples", "TP", "FP", "TN", "FN", "accuracy", "precision", "recall", "f1", "yes_ratio")


def _report(split: str, figures: dict[str, float]) -> str:
    counts = "\t".join(str(int(figures[name])) for name in ("TP", "FP", "TN", "FN"))
    short = ", ".join(
        f"{figures[name]:.3f}" for name in ("f1", "accuracy", "precision", "recall", "yes_ratio")
    )
    return (
        f"Category: {split}, # samples: {int(figures['samples'])}\n"
        f"TP\tFP\tTN\tFN\t\n{counts}\n"
        f"Accuracy: {figures['accuracy']}\nPrecision: {figures['precision']}\nRecall: {figures['recall']}\n"
        f"F1 score: {figures['f1']}\nYes ratio: {figures['yes_ratio']}\n{short}\n{'=' * 36}"
    )


if __name__ == "__main__":
    sys.exit(main())
