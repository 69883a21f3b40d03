"""Takes the middle frame of each of SEED-Bench's videos, as the original's script of this name.

It has no options there and reads SEED-Bench.json and videos/ in the working directory, and so does this one
unless --dir is given. Frames go to SEED-Bench-video-image/TYPE_QUESTION.png; those that are there are kept.
Exit code 1: some videos are missing or cannot be decoded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, OptionParser, note, say
from llava.command import run as run_command
from llava.eval.benchmark import Files
from llava.eval.benchmarks.seed_bench import read_annotations
from llava.eval.video_frames import FRAMES, clips_of, extract

MAX_SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="extract_video_frames.py", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path(), help="the folder seed_bench (default: this one)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="videos at a time (%(default)s)"
    )

    def work() -> int:
        args = parser.parse_all(argv)
        root: Path = args.dir
        annotations = read_annotations(Files(Path(), Path(), annotations=root / "SEED-Bench.json"))
        done = extract(clips_of(annotations, root), num_threads=max(1, args.threads))
        failed = done.failed
        for name, why in list(failed.items())[:MAX_SHOWN]:
            note(f"{name}: {why}")
        if len(failed) > MAX_SHOWN:
            note(f"and {len(failed) - MAX_SHOWN} more")
        say(
            f"{done.num_written} frames written to {root / FRAMES}, {done.num_present} were there, "
            f"{len(failed)} failed"
        )
        return EXIT_WITH_FAILURES if failed else EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
