"""A dialogue or prompt with its pictures -> the tensors a model call takes.

Second half of the chat flow's first step: `templates` renders spans, `tokenizer` gives ids with one -200 per
picture, and here each -200 becomes as many as the picture has features. `L` tokens, `N` features per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import BatchFeature

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.errors import PlaceholderError
from llava.processing.images import ImageSource, load_image
from llava.processing.tokenizer import encode_spans, tokenizer_image_token
from llava.templates import ChatTemplate, Turn

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

    from llava.processing.pixels import ImageProcessor


@dataclass(frozen=True)
class Processor:
    """Everything that stands between a user's words and pictures and the model's input."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor
    template: ChatTemplate
    num_image_tokens: int
    """N: features per picture after the projector."""
    im_start_end: bool = False
    """Whether every picture is wrapped in `<im_start>` and `<im_end>` (`mm_use_im_start_end`)."""

    def __call__(self, prompt: str | Sequence[Turn], images: Sequence[ImageSource] = ()) -> BatchFeature:
        """Return the arguments of one model call.

        `prompt`: a rendered prompt in which each `<image>` stands for a picture, or turns to be rendered.
        Returns input_ids: int64[1, L] with N times -200 per picture, attention_mask: int64[1, L] of ones,
        and, when there are pictures, pixel_values: float32[B, 3, H, W], normalised.
        Raises PlaceholderError when placeholders and pictures differ in number, ImageError for a bad picture.
        """
        input_ids = self.encode(prompt)
        check_placeholders(input_ids, len(images))
        expanded = torch.tensor([self.expand(input_ids)])
        batch = {"input_ids": expanded, "attention_mask": torch.ones_like(expanded)}
        if images:
            batch["pixel_values"] = self.pixels([load_image(image) for image in images])
        return BatchFeature(batch)

    def encode(self, prompt: str | Sequence[Turn]) -> list[int]:
        """Return the ids of a prompt with one -200 per picture."""
        if isinstance(prompt, str):
            return list(tokenizer_image_token(self._wrapped(prompt), self.tokenizer))
        spans = self.template.render(prompt, add_generation_prompt=True, im_start_end=self.im_start_end)
        return encode_spans(spans, self.tokenizer).input_ids

    def expand(self, input_ids: Sequence[int]) -> list[int]:
        """Repeat every -200 once for each feature of its picture."""
        counts = (self.num_image_tokens if token == IMAGE_TOKEN_INDEX else 1 for token in input_ids)
        return [token for token, count in zip(input_ids, counts, strict=True) for _ in range(count)]

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Return pixel_values: float32[B, 3, H, W] of decoded RGB pictures."""
        return self.image_processor(images)

    def _wrapped(self, prompt: str) -> str:
        """Wrap the placeholders of a prompt as the checkpoint was trained, unless they already are."""
        wrapped = f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}"
        if not self.im_start_end:
            return prompt
        return prompt.replace(wrapped, DEFAULT_IMAGE_TOKEN).replace(DEFAULT_IMAGE_TOKEN, wrapped)


def check_placeholders(input_ids: Sequence[int], num_images: int) -> None:
    """Raise PlaceholderError unless there is one -200 for each picture."""
    num_placeholders = sum(token == IMAGE_TOKEN_INDEX for token in input_ids)
    if num_placeholders != num_images:
        raise PlaceholderError(
            f"the prompt has {num_placeholders} <image> placeholder(s) for {num_images} picture(s)",
            remedy="Give one placeholder per picture.",
        )
