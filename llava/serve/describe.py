"""`llava describe PATH`: what a checkpoint is, found out from its files without loading its weights."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from llava.command import EXIT_OK, say

if TYPE_CHECKING:
    from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava describe`."""
    parser.description = __doc__
    parser.add_argument("path", nargs="?", help="checkpoint folder (default: the embedded model)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what the checkpoint is."""
    from llava.demo import embedded_model_path
    from llava.model.describing import describe

    description = describe(args.path or embedded_model_path())
    if args.json:
        say(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        say("\n".join(lines(description)))
    return EXIT_OK


def lines(description: dict[str, object], *, indent: int = 0) -> Iterator[str]:
    """Yield one aligned line per fact; nested facts are indented below their name."""
    width = max((len(name) for name in description), default=0)
    for name, value in description.items():
        label = " " * indent + name.replace("_", " ")
        if isinstance(value, dict):
            yield label
            yield from lines(value, indent=indent + 2)
        else:
            yield f"{label:<{width + indent}}  {_shown(value)}"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value) or "none"
    return str(value)
