"""Does the company of other requests change answers? A check that anyone can run on their machine and dtype.

Sums of a batch are added up in another order than those of one row, so near-ties may fall the other way. In
float32 that hardly ever happens; in bfloat16 and float16 it does, and who compares models should know how
often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.engine.protocol import DEFAULT_CONCURRENCY, Engine
from llava.engine.request import Answer, Request


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How many answers changed with the batch size."""

    num_requests: int
    batch_size: int
    changed: tuple[int, ...]
    """Indices of the requests that were answered otherwise."""

    @property
    def share(self) -> float:
        """Changed answers over all, 0 to 1."""
        return len(self.changed) / self.num_requests if self.num_requests else 0.0

    def line(self) -> str:
        """Return the finding in a sentence."""
        return (
            f"{len(self.changed)} of {self.num_requests} answers change "
            f"between batch sizes 1 and {self.batch_size}"
        )


def check_batch_sizes(
    engine: Engine, requests: Sequence[Request], *, batch_size: int = DEFAULT_CONCURRENCY
) -> SelfCheck:
    """Answer greedy requests one by one and together, and compare ids (or texts, where there are no ids)."""
    alone = [engine.generate([request])[0] for request in requests]
    together = engine.generate(requests, batch_size=batch_size)
    pairs = enumerate(zip(alone, together, strict=True))
    changed = tuple(index for index, (one, other) in pairs if _content(one) != _content(other))
    return SelfCheck(len(requests), batch_size, changed)


def _content(answer: Answer) -> object:
    return answer.token_ids or answer.text
