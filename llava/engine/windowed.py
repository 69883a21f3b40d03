"""Many requests through an engine that takes one at a time: a window of them under way, answers in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from queue import SimpleQueue

from llava.engine.protocol import OnAnswer
from llava.engine.pushed_stream import PushedStream
from llava.engine.request import Answer, Request
from llava.errors import ConfigError


def answer_all(
    submit: Callable[[Request], PushedStream],
    requests: Sequence[Request],
    *,
    batch_size: int,
    on_answer: OnAnswer | None = None,
) -> list[Answer]:
    """Answer `requests`, at most `batch_size` at a time; `on_answer` is called in this thread.

    The first error is raised as soon as it is known, and what is still under way is cancelled.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}", remedy="It must be at least 1.")
    ended: SimpleQueue[int] = SimpleQueue()
    running: dict[int, PushedStream] = {}
    answers: dict[int, Answer] = {}
    upcoming = iter(enumerate(requests))
    try:
        while True:
            for index, request in islice(upcoming, batch_size - len(running)):
                running[index] = submit(request)
                running[index].when_ended(lambda _, own=index: ended.put(own))  # type: ignore[misc]
            if not running:
                return [answers[index] for index in range(len(requests))]
            index = ended.get()
            answers[index] = running.pop(index).answer
            if on_answer is not None:
                on_answer(index, answers[index])
    finally:
        for stream in running.values():
            stream.cancel()
