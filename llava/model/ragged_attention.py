"""Attention of many rows at once, each over its own keys and values of earlier steps.

The T new positions of all rows stand end to end in one row of tokens, so that every matrix of the model is
read once a step whatever the rows are: a piece of a prompt here, a single token there. Only attention looks
at rows one by one: it appends a row's new keys and values to those it has, and attends to them. The rows
travel through the model's keyword arguments to every layer, as transformers passes them on; without them the
function is transformers' own "sdpa".

H heads, Hk key and value heads, D head size, T new positions, S positions that a row has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

RAGGED_SDPA = "llava_ragged_sdpa"


@dataclass(eq=False)
class KeyValueRow:
    """Keys and values of one row, layer by layer, in memory that was allocated when it began."""

    max_tokens: int
    """S."""
    num_tokens: int = 0
    """Positions that are there in every layer."""
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer: float[2, Hk, S, D], keys then values."""

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return sum(layer.nbytes for layer in self.layers.values())

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write float[1, Hk, n, D] behind what is there; return float[1, Hk, num_tokens + n, D] of both.

        Writing the same positions again is harmless: `num_tokens` grows when a whole step is done.
        """
        if layer not in self.layers:
            shape = (2, key.shape[1], self.max_tokens, key.shape[3])
            self.layers[layer] = key.new_empty(shape)
        held = self.layers[layer]
        end = self.num_tokens + key.shape[2]
        held[0, :, self.num_tokens : end] = key[0]
        held[1, :, self.num_tokens : end] = value[0]
        return held[None, 0, :, :end], held[None, 1, :, :end]

    def copy(self, num_tokens: int, *, max_tokens: int) -> KeyValueRow:
        """Return a row of its own that begins with the first `num_tokens` positions of this one."""
        row = KeyValueRow(max_tokens, num_tokens)
        for layer, held in self.layers.items():
            row.layers[layer] = held.new_empty((2, held.shape[1], max_tokens, held.shape[3]))
            row.layers[layer][:, :, :num_tokens] = held[:, :, :num_tokens]
        return row


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """Whose positions a step computes, in the order in which they stand."""

    rows: Sequence[KeyValueRow]
    lengths: Sequence[int]
    """New positions of each row; their sum is T."""
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)
    """Masks of this step, shared by its layers."""

    def mask(self, num_new: int, num_tokens: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Return bool[num_new, num_tokens]: what each of the last `num_new` positions may see."""
        found = self.masks.get((num_new, num_tokens, window))
        if found is None:
            positions = torch.arange(num_tokens, device=device)
            last = positions[num_tokens - num_new :, None]
            found = positions <= last
            if window is not None:
                found &= positions > last - window
            self.masks[num_new, num_tokens, window] = found
        return found


def ragged_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    ragged: RaggedRows | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return float[1, T, H, D] for float[1, H, T, D] queries and float[1, Hk, T, D] keys and values.

    ragged: the rows; None runs transformers' "sdpa" with the mask. sliding_window: positions that a position
    sees at most, itself included; None sees all before it.
    """
    if ragged is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    lengths = list(ragged.lengths)
    outputs = []
    layer: Any = module.layer_idx
    for row, q, k, v in zip(
        ragged.rows, *(states.split(lengths, dim=2) for states in (query, key, value)), strict=True
    ):
        keys, values = row.append(layer, k, v)
        outputs.append(_attend(q, keys, values, ragged, scaling, sliding_window))  # [1, H, n, D]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ragged: RaggedRows,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    num_new, num_tokens = query.shape[2], keys.shape[2]
    if window is not None and window >= num_tokens:
        window = None
    # One position sees everything, and a whole prompt is plainly causal: neither needs a mask.
    is_causal = num_new == num_tokens > 1 and window is None
    needs_mask = window is not None or 1 < num_new < num_tokens
    mask = ragged.mask(num_new, num_tokens, window, query.device) if needs_mask else None
    return F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=keys.shape[1] != query.shape[1],
    )


AttentionInterface.register(RAGGED_SDPA, ragged_sdpa)
AttentionMaskInterface.register(RAGGED_SDPA, sdpa_mask)


def can_be_ragged(language_model: Any) -> bool:
    """Whether a transformers language model leaves attention to the function that it is given.

    Those that cap attention scores, add biases of their own (MPT) or use another kernel than sdpa do not.
    """
    config = language_model.config
    is_capped = config.to_dict().get("attn_logit_softcapping") is not None
    is_sdpa = config._attn_implementation in ("sdpa", RAGGED_SDPA)
    return bool(language_model._supports_attention_backend) and is_sdpa and not is_capped


def use_ragged_attention(language_model: Any) -> None:
    """Give a language model the attention function above; without `ragged` rows it computes as before."""
    language_model.set_attn_implementation(RAGGED_SDPA)


def ragged_arguments(
    rows: Sequence[KeyValueRow], lengths: Sequence[int], *, device: torch.device
) -> dict[str, object]:
    """Return the keyword arguments of a model call that computes `lengths` new positions of `rows`."""
    positions = [
        torch.arange(row.num_tokens, row.num_tokens + length, device=device)
        for row, length in zip(rows, lengths, strict=True)
    ]
    # A four-dimensional mask is taken as it is: it stops the model from building one of its own.
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {
        "ragged": RaggedRows(rows, lengths),
        "position_ids": torch.cat(positions)[None],  # [1, T]
        "attention_mask": unused,
        "use_cache": False,
    }
