"""Several prompts as one tensor: left padding, picture features in place, one decoding step for all rows.

B rows, L prompt length, N features per picture, C hidden size, V vocabulary. Knows ids, not text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from llava.constants import IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM

PAD_ID = 0
"""Any valid id: padded positions are masked."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row's prompt: ids with every picture expanded, and the features to put in those places."""

    input_ids: torch.Tensor
    """int64[L], on the CPU, -200 at picture positions."""
    image_features: torch.Tensor | None
    """float[n * N, C] of the row's pictures in order, or None."""


class DecodingBatch:
    """Rows that are decoded together: their keys and values, their padding, their positions."""

    def __init__(self, model: LlavaForCausalLM, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._cache = DynamicCache(config=model.config.get_text_config())
        self._mask: torch.Tensor | None = None
        self._is_padded = False

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Run the prompts through the model; returns float[B, V], the logits of the first new token."""
        width = max(len(prompt.input_ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), PAD_ID)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.input_ids) :] = prompt.input_ids
            mask[row, width - len(prompt.input_ids) :] = 1
        self._mask = mask.to(self._device)
        self._is_padded = not bool(mask.all())
        embeds = self._embed(ids.to(self._device), prompts)  # [B, L, C]
        return self._forward(embeds, (self._mask.cumsum(-1) - 1).clamp(min=0))

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to every row; returns float[B, V], the logits of the next."""
        assert self._mask is not None, "step before prefill"
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=-1)
        ids = torch.tensor(tokens, device=self._device)[:, None]  # [B, 1]
        embeds = self._model.get_input_embeddings()(ids)
        return self._forward(embeds, self._mask.sum(-1, keepdim=True) - 1)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop the rows that are not named."""
        assert self._mask is not None, "keep before prefill"
        index = torch.tensor(rows, device=self._device)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]

    def _embed(self, ids: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        embeds = self._model.get_input_embeddings()(ids)
        features = [prompt.image_features for prompt in prompts if prompt.image_features is not None]
        if not features:
            return embeds
        is_image = (ids == IMAGE_TOKEN_INDEX).unsqueeze(-1)
        return embeds.masked_scatter(is_image, torch.cat(features).to(embeds.device, embeds.dtype))

    def _forward(self, embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        # Without padding the model's own causal mask and positions are right, and its fast paths stay open.
        padding = {"attention_mask": self._mask, "position_ids": position_ids} if self._is_padded else {}
        output = self._model(
            inputs_embeds=embeds, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **padding
        )
        return output.logits[:, -1]
