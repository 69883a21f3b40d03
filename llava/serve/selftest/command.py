"""Attack one's own deployment on this machine, and say what it stood.

  llava serve                                                         in one terminal
  llava selftest --attack http://127.0.0.1:8000                       in another
  llava selftest --attack URL --key-file FILE --controller URL        with a key, and controller and workers
  llava selftest --attack URL --only A3,A11 --json                    some of it, as JSON

Only addresses of this machine are attacked. Exit code 0: everything that applies was stood; 1: something was
not, and the table says what.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, nearest, note, say
from llava.errors import UsageError
from llava.files import read_text

if TYPE_CHECKING:
    from llava.serve.selftest.outcome import Outcome
    from llava.serve.selftest.target import Target

_DEFAULT_PATIENCE_S = 75.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava selftest`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--attack", metavar="URL", required=True, help="where `llava serve` answers")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key-file", type=Path, metavar="FILE", help="file with its API key")
    key.add_argument("--key-env", metavar="VARIABLE", help="environment variable with its API key")
    parser.add_argument("--controller", metavar="URL", help="attack a controller too")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the controller's token (default: this user's own)"
    )
    parser.add_argument("--only", metavar="A3,A11", help="some attacks of A1 to A23")
    parser.add_argument(
        "--patience-s",
        type=float,
        default=_DEFAULT_PATIENCE_S,
        metavar="SECONDS",
        help="how long a server may take to give up on slow clients (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print every trial as JSON")


def run(args: argparse.Namespace) -> int:
    """Attack, and print what came of it."""
    from llava.serve.network_options import require_serving_packages

    require_serving_packages()
    from llava.serve.selftest.running import NAMES, attack_all

    only = _names(args.only, NAMES)
    target = _target(args)
    try:
        target.open()
        outcomes: list[Outcome] = []
        for outcome in attack_all(target, only):
            note(f"{outcome.name}: {outcome.verdict} ({outcome.seconds:.1f} s)")
            outcomes.append(outcome)
    finally:
        target.close()
    say(as_json(outcomes) if args.json else as_table(outcomes))
    return EXIT_WITH_FAILURES if any(outcome.verdict == "FAIL" for outcome in outcomes) else EXIT_OK


def as_table(outcomes: Iterable[Outcome]) -> str:
    """Return one line for each attack, and one for the sum."""
    rows = [["", "attack", "tried", "result", "seen"]]
    counts = {"pass": 0, "FAIL": 0, "n/a": 0}
    for outcome in outcomes:
        counts[outcome.verdict] += 1
        rows.append(
            [outcome.name, outcome.title, str(len(outcome.trials) or "-"), outcome.verdict, outcome.seen]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), _cut(row[-1])])
        for row in rows
    ]
    total = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return "\n".join([*(line.rstrip() for line in lines), "", total])


def as_json(outcomes: Iterable[Outcome]) -> str:
    """Return every trial."""
    return json.dumps(
        [
            {
                **asdict(outcome),
                "trials": [trial._asdict() for trial in outcome.trials],
                "verdict": outcome.verdict,
            }
            for outcome in outcomes
        ],
        indent=1,
    )


def _cut(text: str, length: int = 110) -> str:
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return plain if len(plain) <= length else plain[: length - 3] + "..."


def _names(given: str | None, known: Sequence[str]) -> Sequence[str]:
    if given is None:
        return known
    names = [name.strip().upper() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no attack {name}",
                remedy=f"{nearest(name, known)}There are {known[0]} to {known[-1]}.",
            )
    return names


def _target(args: argparse.Namespace) -> Target:
    from llava.serve.http.secret_file import read_secret, token_file
    from llava.serve.selftest.service import Service
    from llava.serve.selftest.target import Target

    if not args.patience_s > 0:
        raise UsageError("--patience-s is not above 0", remedy="Give seconds.")
    timeout_s = max(30.0, args.patience_s)
    api = Service(_own(args.attack, "--attack"), _key(args), timeout_s=timeout_s)
    controller = None
    if args.controller is not None:
        token = read_secret(token_file(args.token_file))
        controller = Service(_own(args.controller, "--controller"), token, timeout_s=timeout_s)
    return Target(api, controller, patience_s=args.patience_s)


def _key(args: argparse.Namespace) -> str | None:
    if args.key_file is not None:
        return read_text(args.key_file).strip()
    if args.key_env is None:
        return None
    key = os.environ.get(args.key_env, "").strip()
    if not key:
        raise UsageError(f"the variable {args.key_env} is not set", remedy="Put the key into it.")
    return key


def _own(url: str, option: str) -> str:
    """Return an address of this machine; raises UsageError for any other."""
    from llava.serve.http.access import is_loopback

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise UsageError(f"{option} is not an address", remedy="Write it as http://127.0.0.1:PORT.")
    if "@" in parts.netloc or not is_loopback(parts.hostname):
        raise UsageError(
            f"{option} {url} is not on this machine, and only one's own deployment is attacked",
            remedy="Run the selftest on the machine of the server, with http://127.0.0.1:PORT.",
        )
    return url.rstrip("/")
