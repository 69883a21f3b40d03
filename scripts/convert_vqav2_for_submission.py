"""Writes the upload of VQAv2's server, as the original's script of this name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, OptionParser, note, say
from llava.command import run as run_command
from llava.errors import DataError
from llava.eval.answers import parse_answers
from llava.eval.benchmark import Files, get_benchmark
from llava.files import read_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="convert_vqav2_for_submission.py", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"), help="(%(default)s)")
    parser.add_argument("--ckpt", required=True, help="name of the model below answers/SPLIT")
    parser.add_argument("--split", required=True, help="as llava_vqav2_mscoco_test-dev2015")

    def work() -> int:
        args = parser.parse_all(argv)
        path = args.dir / "answers" / args.split / args.ckpt / "merge.jsonl"
        records: list[dict[str, Any]] = []
        num_broken = 0
        for line in read_text(path).split("\n"):
            try:
                records += parse_answers([line], source=str(path))
            except DataError:
                # As in the original: a torn line costs its own answer, and is counted.
                num_broken += 1
        if num_broken:
            note(f"note: {num_broken} lines of {path} are no answers")
        target = args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        files = Files(args.dir / "llava_vqav2_mscoco_test2015.jsonl", Path())
        get_benchmark("vqav2").export(files, records, target)
        say(f"total results: {len(records)}, upload: {target}")
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
