"""`python -m llava.eval.eval_textvqa`: scores TextVQA answers with the original's options and words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, note, say
from llava.command import run as run_command
from llava.errors import UsageError
from llava.eval.answers import read_answers
from llava.eval.benchmarks.textvqa import score_lines
from llava.files import read_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="python -m llava.eval.eval_textvqa", description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", type=Path, help="one answers file")
    parser.add_argument("--result-dir", type=Path, help="a folder whose *.jsonl are all scored")

    def work() -> int:
        args = parser.parse_all(argv)
        paths = [] if args.result_file is None else [args.result_file]
        if args.result_dir is not None:
            paths += sorted(args.result_dir.glob("*.jsonl"))
        if not paths:
            raise UsageError("there is nothing to score", remedy="Give --result-file or --result-dir.")
        annotations = read_json(args.annotation_file)
        for path in paths:
            scoring = score_lines(annotations, read_answers(path))
            for notice in scoring.notices:
                note(f"note: {path}: {notice}")
            say(f"{path.stem}\nSamples: {len(scoring.items)}\nAccuracy: {scoring.value:.2f}%\n")
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
