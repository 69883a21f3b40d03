"""What is asked in bench.engine: single streams, clients, chats about a picture, questions about one."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.engine_peers import Call, Peer, Served
from llava.templates import PICTURE, Turn

WORDS = (
    "red",
    "green",
    "blue",
    "large",
    "small",
    "left",
    "right",
    "dark",
    "circle",
    "square",
    "shows",
    "the",
)
NUM_PROMPT_WORDS = 40
SINGLE_TOKENS = 33
CLIENT_TOKENS = 32


class Load(NamedTuple):
    """What a workload came to."""

    wall_s: float
    requests: list[Served]

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return len(self.requests) / self.wall_s

    def first(self, percentile: float) -> float:
        """Seconds to the first token, of this percentile."""
        return float(np.percentile([served.first_s for served in self.requests], percentile))


class Source:
    """Pictures and questions that never repeat: what is remembered must not flatter."""

    def __init__(self, seed: int) -> None:
        """The same seed gives the same ones."""
        self._chance = random.Random(seed)
        self._pixels = np.random.default_rng(seed)

    def picture(self) -> Image.Image:
        """Return a new picture."""
        return Image.fromarray(self._pixels.integers(0, 256, (224, 224, 3), dtype=np.uint8))

    def text(self, num_words: int) -> str:
        """Return a new text."""
        return " ".join(self._chance.choices(WORDS, k=num_words))

    def question(self, num_words: int = NUM_PROMPT_WORDS) -> Turn:
        """Return a new question about a picture."""
        return Turn("user", (PICTURE, "\n", self.text(num_words)))


def single(peer: Peer, source: Source) -> Served:
    """One cold request: a new picture, a new question."""
    return peer.serve(Call([source.question()], [source.picture()], SINGLE_TOKENS))


def clients(peer: Peer, source: Source, num_clients: int, *, requests_each: int = 2) -> Load:
    """So many clients at once, each with requests of its own, one after the other."""
    scripts = [
        [[Call([source.question()], [source.picture()], CLIENT_TOKENS)] for _ in range(requests_each)]
        for _ in range(num_clients)
    ]
    return _run(peer, [[call for group in script for call in group] for script in scripts])


def chats(peer: Peer, source: Source, num_clients: int, *, num_turns: int = 3, num_tokens: int = 16) -> Load:
    """So many chats at once of some turns about one picture each; the answers are the source's words."""
    scripts = []
    for _ in range(num_clients):
        picture, turns, calls = source.picture(), [source.question(12)], []
        for _ in range(num_turns):
            calls.append(Call(list(turns), [picture], num_tokens))
            turns += [Turn("assistant", (source.text(num_tokens),)), Turn("user", (source.text(12),))]
        scripts.append(calls)
    return _run(peer, scripts)


def yes_or_no(peer: Peer, source: Source, *, num_questions: int = 18, num_tokens: int = 2) -> Load:
    """Questions about one picture with an answer of one word, as POPE asks them, all at once."""
    picture = source.picture()
    return _run(
        peer,
        [[Call([source.question(8)], [picture], num_tokens)] for _ in range(num_questions)],
    )


def _run(peer: Peer, scripts: Sequence[Sequence[Call]]) -> Load:
    served: list[Served] = []
    errors: list[BaseException] = []

    def client(script: Sequence[Call]) -> None:
        try:
            served.extend([peer.serve(call) for call in script])
        except BaseException as error:  # shown by the main thread
            errors.append(error)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client, args=(script,)) for script in scripts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Load(time.perf_counter() - begin, served)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)
