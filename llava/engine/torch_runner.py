"""The torch runner: transformers' own model, all rows in one pass, keys and values in memory of their own.

B pictures, N features per picture, C hidden size, V vocabulary, T new positions of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llava.engine.layout import lay_out_for_few_rows
from llava.engine.model_runner import ModelRunner
from llava.engine.runner import Chunk, Row, Stored
from llava.model.ragged_attention import KeyValueRow, ragged_arguments, use_ragged_attention

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM

_ROUND_TO = 64
"""Rows take memory in such steps of positions, so that blocks set free fit the next ones."""
_SLACK = 1.25
"""A stored prefix keeps the memory of its row unless that is more than so many times what it needs."""


class TorchRunner(ModelRunner):
    """A model on any device of torch, all rows in one pass."""

    def __init__(
        self, model: LlavaForCausalLM, device: torch.device, *, max_cache_bytes: int | None = None
    ) -> None:
        """Prepare the model, one that `can_be_ragged`, for rows. max_cache_bytes: as in ModelRunner."""
        super().__init__(model, device, max_cache_bytes=max_cache_bytes)
        use_ragged_attention(model.model.language_model)
        lay_out_for_few_rows(model.model.language_model, model.lm_head)

    def can_open(self, max_tokens: int) -> bool:
        """Whether a row of so many positions, rounded up, fits beside what is there."""
        return super().can_open(_rounded(max_tokens))

    @torch.inference_mode()
    def open(
        self, max_tokens: int, *, source: Row | Stored | None = None, num_shared: int = 0
    ) -> KeyValueRow:
        """Begin a row; what it shares with `source` is copied."""
        max_tokens = _rounded(max_tokens)
        if source is None or not num_shared:
            row = KeyValueRow(max_tokens)
        else:
            assert isinstance(source, KeyValueRow), "a row of another runner"
            row = source.copy(num_shared, max_tokens=max_tokens)
        self._num_tokens += max_tokens
        return row

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute every chunk in one pass; returns float32[R, V] on the CPU or the model's device."""
        rows = [_own(chunk.row) for chunk in chunks]
        lengths = [len(chunk.embeds) for chunk in chunks]
        try:
            hidden = self._model.model.language_model(
                inputs_embeds=torch.cat([chunk.embeds for chunk in chunks])[None],
                **ragged_arguments(rows, lengths, device=self._device),
            ).last_hidden_state[0]  # [T, C]
            ends = torch.tensor(lengths).cumsum(0) - 1
            wanted = ends[torch.tensor([chunk.wants_logits for chunk in chunks])]
            logits = self._model.lm_head(hidden[wanted.to(hidden.device)]).float()
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        for row, length in zip(rows, lengths, strict=True):
            row.num_tokens += length
        return logits

    @torch.inference_mode()
    def close(self, row: Row, *, keep: bool) -> KeyValueRow | None:
        """End a row; a stored prefix is the row itself, or a copy where much of its room was not needed."""
        held = _own(row)
        if not keep or not held.num_tokens:
            self.drop(held)
            return None
        needed = _rounded(held.num_tokens)
        if held.max_tokens <= needed * _SLACK:
            return held
        self._num_tokens += needed - held.max_tokens
        return held.copy(held.num_tokens, max_tokens=needed)

    def drop(self, stored: Stored) -> None:
        """Forget a stored prefix."""
        held = _own(stored)
        self._num_tokens -= held.max_tokens
        held.layers.clear()


def _own(row: Row | Stored) -> KeyValueRow:
    assert isinstance(row, KeyValueRow), "a row of another runner"
    return row


def _rounded(num_tokens: int) -> int:
    return -(-num_tokens // _ROUND_TO) * _ROUND_TO
