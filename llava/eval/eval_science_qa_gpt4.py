"""`python -m llava.eval.eval_science_qa_gpt4`: ScienceQA by GPT-4, by us where it named no option.

Prints the original's lines. Where the original drew an option at random, ours is wrong (docs/deviations.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, OptionParser, note, say
from llava.command import run as run_command
from llava.errors import DataError
from llava.eval.answers import read_answers
from llava.eval.benchmarks.scienceqa import read_problems
from llava.eval.metrics.scienceqa import FAILED, option_index, parse_statement
from llava.files import read_json


@dataclass(frozen=True)
class Ensemble:
    """Two models' answers to one split; places of options are -1 where an answer names none."""

    truth: Mapping[str, int]
    ours: Mapping[str, int]
    gpt4: Mapping[str, int]
    failed: Sequence[str]
    """Questions to which GPT-4 named no option."""

    @property
    def filled(self) -> dict[str, int]:
        """GPT-4's places, ours where it named none."""
        return {pid: self.ours[pid] if pid in self.failed else place for pid, place in self.gpt4.items()}

    def right(self, *places: Mapping[str, int]) -> int:
        """Return to how many questions one of the models gave the right place."""
        return sum(any(own[pid] == answer for own in places) for pid, answer in self.truth.items())

    def line(self, name: str, count: int, share: str = "Accuracy") -> str:
        """Return a line as the original prints it."""
        return f"Total: {len(self.truth)}, {name}: {count}, {share}: {count / len(self.truth) * 100:.2f}%"


def add_arguments(parser: OptionParser) -> None:
    """Declare the options that both commands have."""
    parser.add_argument("--base-dir", type=Path, required=True, help="folder of problems.json")
    parser.add_argument("--gpt4-result", type=Path, required=True, help='JSON with "outputs" by question')
    parser.add_argument("--our-result", type=Path, required=True, help="our answers file")
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", default="ABCDE", choices=["ABCDE"], help="the letters (%(default)s)")


def read_ensemble(args: argparse.Namespace) -> tuple[Ensemble, dict[str, Any]]:
    """Return both models' answers, and all problems; raises FileError, DataError."""
    pids, problems = read_problems(args.base_dir, args.split)
    if not pids:
        raise DataError(f"the split {args.split} holds no problems")
    gpt4 = read_json(args.gpt4_result)
    outputs = gpt4.get("outputs") if isinstance(gpt4, dict) else None
    if not isinstance(outputs, dict):
        raise DataError(f'{args.gpt4_result} has no "outputs"', remedy="Give a result of eval_science_qa.")
    texts = {"our": read_texts(args.our_result), "GPT-4": {pid: str(text) for pid, text in outputs.items()}}
    for name, own in texts.items():
        if missing := [pid for pid in pids if pid not in own]:
            note(
                f"note: {len(missing)} questions have no {name} answer ({missing[0]}, ...): counted as failed"
            )
    letters = {pid: parse_statement(texts["GPT-4"].get(pid, FAILED)) for pid in pids}
    ensemble = Ensemble(
        truth={pid: problems[pid]["answer"] for pid in pids},
        ours={pid: place_of(texts["our"].get(pid, FAILED), problems[pid]) for pid in pids},
        gpt4={pid: option_index(letters[pid], problems[pid]["choices"]) for pid in pids},
        failed=[pid for pid in pids if letters[pid] == FAILED],
    )
    return ensemble, problems


def read_texts(path: Path) -> dict[str, str]:
    """Return the answers of a file by question, the last one of each; raises FileError, DataError."""
    return {str(record["question_id"]): str(record["text"]) for record in read_answers(path)}


def place_of(text: str, problem: Mapping[str, Any]) -> int:
    """Return the place of the option that "The answer is X." names, -1 where there is none."""
    return option_index(parse_statement(text), problem["choices"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="python -m llava.eval.eval_science_qa_gpt4", description=__doc__)
    add_arguments(parser)

    def work() -> int:
        ensemble, _ = read_ensemble(parser.parse_all(argv))
        filled = ensemble.filled
        say(ensemble.line("Correct", ensemble.right(filled)))
        say(ensemble.line("Correct (upper)", ensemble.right(filled, ensemble.ours)))
        say(ensemble.line("GPT-4 NO-ANS (RANDOM)", len(ensemble.failed), "Percentage"))
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
