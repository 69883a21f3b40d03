"""A runner without a model: what comes next is a function of all that came before, and nothing is hidden."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from llava.engine.generation import Generation, OnPiece
from llava.engine.prompt import Prompt
from llava.engine.request import SamplingParams
from llava.engine.runner import Chunk, Row, Stored
from llava.errors import EngineError

VOCABULARY = 50
END = 1


@dataclass(eq=False)
class FakeRow:
    """The ids that were computed, in place of keys and values."""

    max_tokens: int
    ids: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        return len(self.ids)


def next_id(ids: Sequence[int]) -> int:
    """Return the id after `ids`: never END before the row is long."""
    return 2 + (sum(i * value for i, value in enumerate(ids, 1)) * 7 + len(ids)) % (VOCABULARY - 2)


class FakeRunner:
    """One byte a position; embeddings are the ids themselves."""

    name = "fake"
    weight_bytes = 1

    def __init__(self, *, max_bytes: int = 10_000) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.steps: list[list[int]] = []
        """Lengths of the chunks of each step."""
        self.failures: list[Exception] = []
        """Raised by the next steps."""

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise AssertionError(f"no pictures here, and there came {len(pixel_values)}")

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return token_ids[:, None].float()

    def can_open(self, max_tokens: int) -> bool:
        return self.num_bytes + max_tokens <= self.max_bytes

    def open(self, max_tokens: int, *, source: Row | Stored | None = None, num_shared: int = 0) -> FakeRow:
        assert self.can_open(max_tokens)
        self.num_bytes += max_tokens
        shared = source.ids[:num_shared] if isinstance(source, FakeRow) else []
        assert len(shared) == num_shared
        return FakeRow(max_tokens, list(shared))

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        if self.failures:
            raise self.failures.pop(0)
        self.steps.append([len(chunk.embeds) for chunk in chunks])
        logits = []
        for chunk in chunks:
            assert isinstance(chunk.row, FakeRow)
            chunk.row.ids.extend(int(value) for value in chunk.embeds[:, 0])
            assert len(chunk.row.ids) <= chunk.row.max_tokens
            if chunk.wants_logits:
                logits.append(torch.nn.functional.one_hot(torch.tensor(next_id(chunk.row.ids)), VOCABULARY))
        return torch.stack(logits).float() if logits else torch.empty(0)

    def close(self, row: Row, *, keep: bool) -> FakeRow | None:
        assert isinstance(row, FakeRow)
        self.num_bytes -= row.max_tokens
        if not keep:
            return None
        row.max_tokens = row.num_tokens
        self.num_bytes += row.num_tokens
        return row

    def drop(self, stored: Stored) -> None:
        self.num_bytes -= stored.num_tokens


class Numbers:
    """A tokenizer whose text is the ids."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(f"{token} " for token in token_ids if not (skip_special_tokens and token == END))


def expected(prompt: Sequence[int], num_new_tokens: int) -> list[int]:
    """Return what a row alone would answer."""
    ids = list(prompt)
    for _ in range(num_new_tokens):
        ids.append(next_id(ids))
    return ids[len(prompt) :]


def generation(
    prompt: Sequence[int], num_new_tokens: int = 4, *, on_piece: OnPiece | None = None
) -> Generation:
    """Return a request of ids."""
    return Generation(
        Prompt.of(prompt, (), 1),
        SamplingParams(max_new_tokens=num_new_tokens),
        tokenizer=Numbers(),
        stop=(),
        eos_ids=frozenset({END}),
        max_new_tokens=num_new_tokens,
        start=0.0,
        on_piece=on_piece,
    )


def exhausted() -> EngineError:
    """Return the error of a device without memory."""
    return EngineError("no memory")


def prompts(num: int, length: int, *, shared: int = 0) -> list[list[int]]:
    """Return prompts that differ after their first `shared` ids."""
    common = [2 + i % 40 for i in range(shared)]
    fresh = itertools.count(3)
    return [common + [2 + next(fresh) * 11 % 47 for _ in range(length - shared)] for _ in range(num)]
