"""Print what review files come to: category, relative score, reference, model.

The original's command of this name. Reviews without scores that can be read are left out and told; --compat
averages them as -1, as the original did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OptionParser, note, run, say
from llava.errors import UsageError
from llava.eval.judge.review import read_reviews
from llava.eval.judge.summary import RULER, summarise

_PREFIXES = ("gpt4_text_", "review_", "reviews_")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the summaries and return the exit code."""
    return run(lambda: _summarise(sys.argv[1:] if argv is None else argv))


def _summarise(argv: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m llava.eval.summarize_gpt_review", description=__doc__)
    parser.add_argument("-d", "--dir", type=Path, metavar="FOLDER", help="where the review files are")
    parser.add_argument("-v", "--version", choices=("0314", "0613"), help="only reviews of this judge")
    parser.add_argument(
        "-s", "--select", nargs="*", metavar="TEXT", help="only files whose name has all of these"
    )
    parser.add_argument("-f", "--files", nargs="*", default=[], metavar="FILE", help="these files")
    parser.add_argument(
        "-i", "--ignore", nargs="*", type=int, default=[], metavar="ID", help="without questions"
    )
    parser.add_argument("--compat", action="store_true", help="average what cannot be read as -1")
    parser.add_argument("--json", action="store_true", help="print JSON, with unrounded means")
    args = parser.parse_all(argv)
    found: dict[str, object] = {}
    for path in _chosen(args.dir, args.files):
        name = path.name.replace("gpt4_text_", "").replace(".jsonl", "")
        version = "0613" if "0613" in str(path) else "0314"
        if args.version not in (None, version) or any(word not in name for word in args.select or ()):
            continue
        summary = summarise(read_reviews(path), ignore=args.ignore, compat=args.compat)
        for notice in summary.notices:
            note(f"note: {name}: {notice}")
        if args.json:
            found[name] = summary.to_dict() | {"unread": list(summary.unread)}
            continue
        for line in (name, *summary.lines(), RULER):
            say(line)
    if args.json:
        say(json.dumps(found, ensure_ascii=False))
    return 0


def _chosen(folder: Path | None, files: Sequence[str]) -> list[Path]:
    """Return the review files in the original's order; raises UsageError for none."""
    if files:
        return sorted(Path(name) if folder is None else folder / name for name in files)
    if folder is None:
        raise UsageError("neither a folder nor files are named", remedy="Give -d FOLDER or -f FILE...")
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", remedy="Give the folder of the reviews with -d.")
    is_all = "review" in str(folder)
    return sorted(
        path
        for path in folder.glob("*.jsonl")
        if (is_all or path.name.startswith(_PREFIXES))
        and not path.name.endswith((".replies.jsonl", ".swapped.jsonl"))
    )


if __name__ == "__main__":
    sys.exit(main())
