"""What the runners over torch share: the model, its pictures and embeddings, and memory for rows.

B pictures, N features per picture, C hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llava.engine.memory import bytes_per_token, default_cache_bytes, weight_bytes
from llava.errors import EngineError

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM


class ModelRunner:
    """A model on any device of torch, without a way to compute rows yet."""

    def __init__(
        self, model: LlavaForCausalLM, device: torch.device, *, max_cache_bytes: int | None = None
    ) -> None:
        """max_cache_bytes: for keys and values, None takes the device's own."""
        self._model = model
        self._device = device
        self._bytes_per_token = bytes_per_token(model)
        self._max_bytes = default_cache_bytes(device) if max_cache_bytes is None else max_cache_bytes
        self._num_tokens = 0
        """Positions that rows and stored prefixes have memory for."""

    @property
    def name(self) -> str:
        """torch, dtype and device."""
        dtype = str(self._model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        return f"torch {dtype} on {self._device}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one new token of one row reads."""
        return weight_bytes(self._model)

    @torch.inference_mode()
    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float[B, N, C] of float32[B, 3, H, W]."""
        return self._model.encode_images(pixel_values.to(self._device))

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return float[n, C] of int64[n]."""
        return self._model.get_input_embeddings()(token_ids.to(self._device))

    def can_open(self, max_tokens: int) -> bool:
        """Whether a row of so many positions fits beside what is there."""
        return (self._num_tokens + max_tokens) * self._bytes_per_token <= self._max_bytes

    def beam_search(
        self, embeds: torch.Tensor, *, num_beams: int, max_new_tokens: int, eos_ids: frozenset[int]
    ) -> list[int]:
        """Return the new ids of the best beam after float[L, C], by transformers' `generate`.

        Raises EngineError when the device's memory is exhausted.
        """
        mask = torch.ones(1, len(embeds), dtype=torch.long, device=embeds.device)
        try:
            ids = self._model.generate(
                inputs_embeds=embeds[None],
                attention_mask=mask,
                num_beams=num_beams,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(eos_ids),
            )
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        return ids[0].tolist()

    def _out_of_memory(self) -> EngineError:
        """Return the error of a step that did not fit."""
        return EngineError(
            f"the memory of {self._device} is exhausted",
            remedy="Allow fewer rows or less cache, shorten prompts, or load with fewer bits.",
        )
