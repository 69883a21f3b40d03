"""Many questions to an engine, where one that is impossible costs only itself.

`llava chat --input` and `llava eval` both answer through here, each into a file of its own form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from llava.engine.protocol import OnAnswer
from llava.engine.request import Answer, Request
from llava.errors import DataError, FileError, LlavaError, PromptError

ERRORS_OF_ONE = (FileError, PromptError, DataError)
"""What can be wrong with one question without being wrong with all of them."""
MAX_FAILURES_SHOWN = 5

Outcome = Answer | LlavaError
OnOutcome = Callable[[int, Outcome], None]


class Answering(Protocol):
    """What is needed of an engine."""

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = ..., on_answer: OnAnswer | None = ...
    ) -> list[Answer]:
        """Answer many requests, in order."""
        ...


def answer_each(
    engine: Answering, requests: Sequence[Request], *, batch_size: int, on_outcome: OnOutcome | None = None
) -> list[Outcome]:
    """Return each request's answer, or what is wrong with it (ERRORS_OF_ONE; other errors are raised).

    `on_outcome(index, outcome)` is called as each is known.
    """
    outcomes: dict[int, Outcome] = {}

    def keep(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        if on_outcome is not None:
            on_outcome(index, outcome)

    try:
        engine.generate(requests, batch_size=batch_size, on_answer=keep)
    except ERRORS_OF_ONE:
        # One impossible request makes the engine give the others up: find it alone.
        for index, request in enumerate(requests):
            if index in outcomes:
                continue
            try:
                keep(index, engine.generate([request])[0])
            except ERRORS_OF_ONE as error:
                keep(index, error)
    return [outcomes[index] for index in range(len(requests))]


def failure_record(error: LlavaError) -> dict[str, object]:
    """Return what stands for an answer where there was an error."""
    return {"error": {"code": error.code, "cause": error.cause}}


@dataclass
class Tally:
    """What many questions came to."""

    num_jobs: int
    num_skipped: int
    """Answered by an earlier run."""
    num_answered: int = 0
    failed: list[str | int] = field(default_factory=list)
    is_interrupted: bool = False

    def count(self, identity: str | int, *, is_failed: bool) -> None:
        """Take in what one question came to."""
        if is_failed:
            self.failed.append(identity)
        else:
            self.num_answered += 1

    def record(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return asdict(self)

    def line(self) -> str:
        """Return the result in one line."""
        parts = [f"{self.num_answered} answered", f"{len(self.failed)} failed"]
        if self.num_skipped:
            parts.append(f"{self.num_skipped} answered before")
        if self.failed:
            shown = ", ".join(str(identity) for identity in self.failed[:MAX_FAILURES_SHOWN])
            parts[1] += f" ({shown}{', ...' if len(self.failed) > MAX_FAILURES_SHOWN else ''})"
        if self.is_interrupted:
            parts.append("interrupted: the same command goes on from here")
        return f"{self.num_jobs} questions: {', '.join(parts)}"
