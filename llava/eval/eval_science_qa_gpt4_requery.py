"""`python -m llava.eval.eval_science_qa_gpt4_requery`: ScienceQA by a model that was shown both answers.

Prints the original's lines and writes its result file. Where the original drew an option at random for a
failed answer of GPT-4, ours is wrong (docs/deviations.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, say
from llava.command import run as run_command
from llava.eval.eval_science_qa_gpt4 import add_arguments, place_of, read_ensemble, read_texts
from llava.eval.metrics.scienceqa import FAILED, parse_statement
from llava.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="python -m llava.eval.eval_science_qa_gpt4_requery", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--requery-result", type=Path, required=True, help="answers of the third model")
    parser.add_argument("--output-result", type=Path, required=True, help="accuracy and options, to write")

    def work() -> int:
        args = parser.parse_all(argv)
        both, problems = read_ensemble(args)
        texts = read_texts(args.requery_result)
        final = {
            pid: ours
            if parse_statement(texts.get(pid, FAILED)) == FAILED
            else place_of(texts[pid], problems[pid])
            for pid, ours in both.ours.items()
        }
        correct = both.right(final)
        say(both.line("Our-Correct", both.right(both.ours)))
        say(both.line("GPT-4-Correct", both.right(both.gpt4)))
        say(both.line("GPT-4 NO-ANS (RANDOM)", len(both.failed), "Percentage"))
        say(both.line("GPT-4-OursVisual-Correct", both.right(both.filled)))
        say(both.line("Requery-Correct", correct))
        say(both.line("Correct upper", both.right(both.ours, both.gpt4)))
        accuracy = 100 * correct / len(final)
        write_json(
            args.output_result,
            {"acc": accuracy, "correct": correct, "count": len(final), "results": final},
        )
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
