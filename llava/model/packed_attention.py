"""Attention over samples laid end to end in one row, each seeing only itself.

A packed row of L tokens holds samples of lengths `segments`. `use_packed_attention` gives a language model
an attention function that, when a call carries `segments`, runs causal attention sample by sample and needs
no mask; without `segments` it is transformers' own "sdpa". FlashAttention, where it was asked for, gets the
same lengths in its own form. The lengths travel through the model's keyword arguments, as transformers passes
them on to every layer, gradient checkpointing included.

Measured (notes of the project, hidden 768, one CPU thread): 3.1 times faster than a block mask over the row.

H heads, D head size, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llava.errors import ConfigError

PACKED_SDPA = "llava_packed_sdpa"
FLASH = ("flash_attention_2", "flash_attention_3")


def packed_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return float[1, L, H, D] for float[1, H, L, D] queries and float[1, Hk, L, D] keys and values.

    segments: lengths of the samples in the row, sum L; None runs transformers' "sdpa" with the mask.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    lengths = list(segments)
    parts = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]  # each [1, H, l, D]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def use_packed_attention(language_model: Any) -> None:
    """Let a transformers language model take packed rows; raises ConfigError where its attention cannot."""
    config = language_model.config
    if config._attn_implementation in FLASH:
        return
    if not language_model._supports_attention_backend or config._attn_implementation != "sdpa":
        raise ConfigError(
            f"data.packing needs sdpa or FlashAttention, and this {config.model_type} model uses "
            f"{config._attn_implementation}",
            remedy="Set data.packing to false.",
        )
    language_model.set_attn_implementation(PACKED_SDPA)


def packed_arguments(
    language_model: Any, segments: Sequence[int], *, device: torch.device
) -> dict[str, object]:
    """Return the keyword arguments that tell a language model where the samples of a packed row end."""
    if language_model.config._attn_implementation in FLASH:
        ends = torch.tensor([0, *accumulate(segments)], dtype=torch.int32, device=device)
        longest = max(segments)
        return {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    # A four-dimensional mask is taken as it is: it stops the model from building a block mask of its own.
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {"segments": tuple(segments), "attention_mask": unused}
