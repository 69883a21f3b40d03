"""Writes the upload of VizWiz from an answers file, as the original's script of this name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, OptionParser, say
from llava.command import run as run_command
from llava.eval.answers import read_answers
from llava.eval.benchmark import Files, get_benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="convert_vizwiz_for_submission.py", description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="the question file")
    parser.add_argument("--result-file", type=Path, required=True, help="the answers")
    parser.add_argument("--result-upload-file", type=Path, required=True)

    def work() -> int:
        args = parser.parse_all(argv)
        records = read_answers(args.result_file)
        files = Files(args.annotation_file, Path())
        get_benchmark("vizwiz").export(files, records, args.result_upload_file)
        say(f"total results: {len(records)}, upload: {args.result_upload_file}")
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
