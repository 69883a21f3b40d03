"""What the engine needs of a model: pictures to features, ids to embeddings, chunks of rows to logits.

A runner keeps keys and values; the scheduler decides whose. An active `Row` grows by every `forward`. When
its answer is finished, `close` either forgets it or keeps it as a stored prefix, from which `open` can begin
another row without computing the shared part again. Runners know neither text nor requests.

N features per picture, C hidden size, V vocabulary. Tensors are float32 on the CPU unless a runner says
otherwise; a runner is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


class Row(Protocol):
    """Keys and values of one answer in the making; what is in it is the runner's own affair."""

    @property
    def num_tokens(self) -> int:
        """Positions that are computed."""
        ...


class Stored(Protocol):
    """Keys and values of a finished row, kept for rows that begin alike."""

    @property
    def num_tokens(self) -> int:
        """Positions that are kept."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that forgetting it sets free."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next positions of a row: a piece of its prompt, or its last token."""

    row: Row
    embeds: torch.Tensor
    """float[n, C]: token embeddings with picture features in their places, n >= 1."""
    wants_logits: bool = True
    """Whether the logits after the last position are needed; not in the middle of a prompt."""


class Runner(Protocol):
    """A model with its keys and values."""

    @property
    def name(self) -> str:
        """What it runs on, as people should read it: "torch float32 on cpu", "openvino int8"."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one new token of one row reads: language model and head."""
        ...

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return features float[B, N, C] of float32[B, 3, H, W]."""
        ...

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return float[n, C] of int64[n]; negative ids (places of pictures) give any finite row."""
        ...

    def can_open(self, max_tokens: int) -> bool:
        """Whether there is memory now for a further row of at most so many positions."""
        ...

    def open(self, max_tokens: int, *, source: Row | Stored | None = None, num_shared: int = 0) -> Row:
        """Begin a row that may grow to `max_tokens`, with the first `num_shared` positions of `source`."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Append each chunk to its row; returns float32[R, V] of the R chunks that want logits, in order.

        A row occurs at most once. Raises EngineError when the device's memory is exhausted.
        """
        ...

    def close(self, row: Row, *, keep: bool) -> Stored | None:
        """End a row; with `keep`, return it as a stored prefix, or None where it cannot be kept."""
        ...

    def drop(self, stored: Stored) -> None:
        """Forget a stored prefix."""
        ...


@runtime_checkable
class BeamSearch(Protocol):
    """A runner that can also search with beams, one prompt at a time and beside its rows."""

    def beam_search(
        self, embeds: torch.Tensor, *, num_beams: int, max_new_tokens: int, eos_ids: frozenset[int]
    ) -> list[int]:
        """Return the new ids of the best beam after float[L, C]; an id of `eos_ids` may be the last."""
        ...
