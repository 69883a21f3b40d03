"""One forward pass of training: a micro-batch in, the sum of its token losses out.

    pixel_values -> tower, projector -> places of -200 -> language model -> head at supervised positions only

The whole pass is the `forward` of one module, so that DDP, FSDP2 and DeepSpeed see every parameter used
inside it. What learns always takes part: a batch without pictures sends an empty picture through what it
would otherwise miss and keeps none of its rows, which gives zero gradients instead of a rank that waits
forever for the others.

B rows, L tokens, P pictures, N features per picture, C hidden size, T supervised tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Batch
from llava.errors import PlaceholderError
from llava.model.modeling import LlavaForCausalLM
from llava.model.packed_attention import packed_arguments


class Losses(NamedTuple):
    """What a micro-batch cost."""

    total: torch.Tensor
    """float32 scalar with a gradient: sum over supervised tokens, 0 when there are none."""
    per_token: torch.Tensor
    """float32[T], detached, row by row."""


class TrainingModel(nn.Module):
    """The model under training; parameter names are the model's own after "model."."""

    def __init__(
        self,
        model: LlavaForCausalLM | Any,
        *,
        image_size: int | None,
        compute_dtype: torch.dtype = torch.float32,
        is_sharded: bool = False,
    ) -> None:
        """Wrap `model`, whose `requires_grad` flags are final.

        image_size: pixels; None for a language model alone. compute_dtype: of matrix products.
        is_sharded: whether even frozen weights are spread over ranks, so that all must call every part.
        """
        super().__init__()
        self.model = model
        self._image_size = image_size
        self._compute_dtype = compute_dtype
        self._is_sharded = is_sharded
        self._vision_learns = image_size is not None and _learns(model.model.vision_tower)
        self._projector_learns = image_size is not None and _learns(model.model.multi_modal_projector)

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a micro-batch, which may have no rows; see `Batch`.

        Raises PlaceholderError when the places of pictures are not as many as their features.
        """
        device_type = batch.input_ids.device.type
        mixed = self._compute_dtype != torch.float32
        with torch.autocast(device_type, self._compute_dtype) if mixed else nullcontext():
            return self._losses(batch if batch.input_ids.shape[1] else _placeholder_batch(batch))

    def _losses(self, batch: Batch) -> Losses:
        language = self._language_model
        embeds = self._embed(batch)  # [B, L, C]
        if batch.segments is not None:
            extra = packed_arguments(language, batch.segments, device=embeds.device)
        else:
            extra = {"attention_mask": batch.attention_mask}
        hidden = language(
            inputs_embeds=embeds, position_ids=batch.position_ids, use_cache=False, **extra
        ).last_hidden_state  # [B, L, C]
        targets = batch.labels[:, 1:]
        is_supervised = targets != IGNORE_INDEX
        logits = self.model.lm_head(hidden[:, :-1][is_supervised])  # [T, V]
        per_token = F.cross_entropy(logits.float(), targets[is_supervised], reduction="none")  # [T]
        return Losses(per_token.sum(), per_token.detach())

    @property
    def _language_model(self) -> Any:
        return self.model.model if self._image_size is None else self.model.model.language_model

    def _embed(self, batch: Batch) -> torch.Tensor:
        """Return float[B, L, C]: token embeddings with the pictures' features at their places."""
        embeds = self.model.get_input_embeddings()(batch.input_ids.clamp(min=0))
        features = self._features(batch.pixel_values)
        if features is None:
            return embeds
        rows = features.reshape(-1, features.shape[-1]).to(embeds.dtype)  # [P * N, C]
        is_picture = batch.input_ids == IMAGE_TOKEN_INDEX
        num_places = int(is_picture.sum())
        if len(batch.pixel_values) == 0:
            # The stand-in of a batch without pictures: no row of it is used, but it is in the graph.
            rows = rows[:0]
        if num_places != len(rows):
            raise PlaceholderError(
                f"{num_places} places of pictures for {len(rows)} features in {', '.join(batch.ids)}"
            )
        flat = embeds.reshape(-1, embeds.shape[-1])
        places = is_picture.flatten().nonzero().flatten()
        return flat.index_put((places,), rows).reshape(embeds.shape)

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Return float[P, N, C]; without pictures those of a stand-in, where a part must take part."""
        if self._image_size is None:
            return None
        core = self.model.model
        if len(pixel_values) == 0:
            if not (self._vision_learns or self._projector_learns or self._is_sharded):
                return None
            if not (self._vision_learns or self._is_sharded):
                width = core.config.vision_config.hidden_size
                dtype = next(core.multi_modal_projector.parameters()).dtype
                return core.multi_modal_projector(
                    torch.zeros(1, 1, width, device=pixel_values.device, dtype=dtype)
                )
            size = self._image_size
            pixel_values = torch.zeros(1, 3, size, size, device=pixel_values.device)
        with nullcontext() if self._vision_learns else torch.no_grad():
            hidden = core.tower_features(pixel_values)
        weight = next(core.multi_modal_projector.parameters(), None)
        is_mixed = self._compute_dtype != torch.float32
        return core.multi_modal_projector(hidden if weight is None or is_mixed else hidden.to(weight.dtype))


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _placeholder_batch(batch: Batch) -> Batch:
    """Return a row of one token without a target, for a rank that has nothing to do in this micro-step."""
    row = torch.zeros(1, 1, dtype=torch.int64, device=batch.input_ids.device)
    return Batch(
        input_ids=row,
        labels=torch.full_like(row, IGNORE_INDEX),
        position_ids=row,
        attention_mask=None,
        segments=(1,) if batch.segments is not None else None,
        pixel_values=batch.pixel_values[:0],
        num_targets=0,
        num_tokens=0,
    )
