"""Every check of the selftest fails on a server that does wrong what it looks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llava.serve.selftest.outcome import Outcome
from llava.serve.selftest.running import NAMES, attack_all
from llava.serve.selftest.service import Service
from llava.serve.selftest.target import Target
from tests.serve.selftest.weak import KEY, Weak, WeakAccess, WeakPictures, WeakText, WeakWire, running

# Attack -> the server, and parts of what must be among the trials that failed.
EXPECTED: dict[str, tuple[type[Weak], list[str]]] = {
    "A1": (
        WeakAccess,
        ["/register_worker with no token", "a wrong token", "who called the worker's address"],
    ),
    "A2": (WeakAccess, ["this machine without", "a file without", "decimal with", "who called", "redirects"]),
    "A3": (
        WeakAccess,
        ["metadata", "a file", "IPv6-mapped", "by the controller", "who called the addresses"],
    ),
    "A4": (WeakWire, ["chunks without end", "1 byte a second", "says nothing"]),
    "A5": (WeakAccess, ["POST /v1/chat/completions", "GET /v1/models/x"]),
    "A6": (WeakAccess, ["40 pairs"]),
    "A7": (
        WeakAccess,
        ["as evil.example", "from http://evil.example", "from null", "asks beforehand", "a form"],
    ),
    "A8": (WeakWire, ["a question after it"]),
    "A9": (WeakWire, ["both lengths", "NaN", "two lengths", "equal keys", "a file name of 1 MB"]),
    "A10": (WeakWire, ["requests without end"]),
    "A11": (WeakPictures, ["PNG of 30000 x 30000"]),
    "A12": (WeakPictures, ["0 x 10"]),
    "A13": (WeakPictures, ["SVG", "truncated PNG"]),
    "A14": (
        WeakPictures,
        ["the kind of the answer", "/etc/passwd", "x.html after its upload", "x.svg after"],
    ),
    "A15": (WeakPictures, ["tokens that are remembered", "scores of 30 x 100"]),
    "A16": (WeakPictures, ["garbage", "declared as HTML"]),
    "A17": (WeakPictures, ["no picture", "the words of errors"]),
    "A18": (WeakText, ["'<image>' 8 times", "'</s>' 8 times"]),
    "A19": (WeakText, ["10^6 letters", "10^6 words", "to the controller"]),
    "A20": (WeakText, ["2 places as text", "1000 pictures", "2 places, 1 pictures, at the controller"]),
    "A21": (WeakText, ["max_tokens -1", "n 1000000", "stop [", 'temperature "NaN"', "seed -1"]),
    "A22": (
        WeakText,
        ["an answer with scripts", "what the page loads", "the page's policy", "beacons in it"],
    ),
    "A23": (WeakText, ["a tool in a picture", "orders in a picture"]),
}


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[type[Weak], Target]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        made: dict[type[Weak], Target] = {}
        for kind in (WeakAccess, WeakWire, WeakPictures, WeakText):
            url = stack.enter_context(running(kind))
            has_controller = kind in (WeakAccess, WeakText)
            target = Target(
                Service(url, KEY, timeout_s=2),
                Service(url, KEY, timeout_s=2) if has_controller else None,
                patience_s=1.5,
            )
            target.open()
            stack.callback(target.close)
            made[kind] = target
        yield made


def outcome_of(target: Target, name: str) -> Outcome:
    (outcome,) = attack_all(target, [name])
    return outcome


def test_every_attack_has_its_weak_server() -> None:
    assert tuple(EXPECTED) == NAMES


@pytest.mark.parametrize("name", EXPECTED)
def test_an_attack_is_noticed_where_it_works(targets: dict[type[Weak], Target], name: str) -> None:
    kind, expected = EXPECTED[name]
    outcome = outcome_of(targets[kind], name)
    assert outcome.verdict == "FAIL"
    failed = [trial.what for trial in outcome.failures]
    assert [part for part in expected if not any(part in what for what in failed)] == [], failed
