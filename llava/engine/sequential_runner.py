"""The runner for language models that keep attention to themselves: one row after the other.

Position biases (MPT) and capped scores (Gemma 2) are computed inside those models, from caches of their own
library. So each row has such a cache and a pass of its own: exact, and no faster together than alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from llava.engine.model_runner import ModelRunner
from llava.engine.runner import Chunk, Row, Stored
from llava.model.modeling import CACHE_ARGUMENT


@dataclass(eq=False)
class CachedRow:
    """One row with the library's cache."""

    max_tokens: int
    num_bytes_per_token: int
    cache: DynamicCache = field(default_factory=DynamicCache)

    @property
    def num_tokens(self) -> int:
        """Positions that are computed."""
        return int(self.cache.get_seq_length())

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return self.num_tokens * self.num_bytes_per_token


class SequentialRunner(ModelRunner):
    """A model on any device of torch, computed row by row."""

    @torch.inference_mode()
    def open(self, max_tokens: int, *, source: Row | Stored | None = None, num_shared: int = 0) -> CachedRow:
        """Begin a row; what it shares with `source` is copied."""
        row = CachedRow(max_tokens, self._bytes_per_token)
        self._num_tokens += max_tokens
        if source is not None and num_shared:
            for index, layer in enumerate(_own(source).cache.layers):
                shared = (held[:, :, :num_shared].clone() for held in (layer.keys, layer.values))
                row.cache.update(*shared, index)
        return row

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute one chunk after the other; returns float32[R, V]."""
        logits = []
        try:
            for chunk in chunks:
                output = self._model(
                    inputs_embeds=chunk.embeds[None],
                    use_cache=True,
                    logits_to_keep=1,
                    **{CACHE_ARGUMENT: _own(chunk.row).cache},
                )
                if chunk.wants_logits:
                    logits.append(output.logits[0, -1].float())
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        return torch.stack(logits) if logits else torch.empty(0)

    def close(self, row: Row, *, keep: bool) -> CachedRow | None:
        """End a row."""
        held = _own(row)
        self._num_tokens -= held.max_tokens
        if not keep or not held.num_tokens:
            return None
        self._num_tokens += held.num_tokens
        held.max_tokens = held.num_tokens
        return held

    def drop(self, stored: Stored) -> None:
        """Forget a stored prefix."""
        self._num_tokens -= _own(stored).max_tokens


def _own(row: Row | Stored) -> CachedRow:
    assert isinstance(row, CachedRow), "a row of another runner"
    return row
