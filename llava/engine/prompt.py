"""A prompt as the scheduler sees it: ids with every picture expanded, and a key to compare it by.

L prompt length, N features per picture, C hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.engine.pictures import Picture


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids and pictures of one request."""

    input_ids: torch.Tensor
    """int64[L] on the CPU, -200 at the places of pictures."""
    pictures: tuple[Picture, ...]
    """In the order of their places."""
    key: np.ndarray
    """int64[L]: equal beginnings of two keys are equal beginnings of what the model sees."""
    num_image_tokens: int
    """N: places of each picture."""

    @classmethod
    def of(cls, input_ids: Sequence[int], pictures: Sequence[Picture], num_image_tokens: int) -> Prompt:
        """`input_ids` holds N times -200 for each picture."""
        ids = np.asarray(input_ids, dtype=np.int64)
        key = ids.copy()
        if pictures:
            # A picture's places get numbers that no id has and only this picture gives.
            marks = [int.from_bytes(picture.key[:8], "big") >> 1 for picture in pictures]
            key[ids == IMAGE_TOKEN_INDEX] = np.repeat(-1 - np.array(marks), num_image_tokens)
        return cls(torch.from_numpy(ids), tuple(pictures), key, num_image_tokens)

    def __len__(self) -> int:
        """L."""
        return len(self.input_ids)

    def num_pictures_before(self, position: int) -> int:
        """Return how many pictures have all their places before `position`."""
        places = int((self.input_ids[:position] == IMAGE_TOKEN_INDEX).sum())
        return places // self.num_image_tokens if places else 0

    def overlay(
        self, embeds: torch.Tensor, begin: int, features: Sequence[torch.Tensor], first_picture: int
    ) -> torch.Tensor:
        """Put picture features into the embeddings of the positions from `begin` on.

        embeds: float[L - begin, C]. features: float[N, C] of the pictures from `first_picture` on, which is
        the one that `begin` lies in or before. Returns float[L - begin, C].
        """
        if not features:
            return embeds
        is_image = self.input_ids[begin:] == IMAGE_TOKEN_INDEX
        seen = (
            int((self.input_ids[:begin] == IMAGE_TOKEN_INDEX).sum()) - first_picture * self.num_image_tokens
        )
        rows = torch.cat(list(features))[seen:]
        embeds = embeds.clone()
        embeds[is_image.to(embeds.device)] = rows.to(embeds.device, embeds.dtype)
        return embeds


def shared_length(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many elements two keys have in common from their beginning."""
    length = min(len(one), len(other))
    if not length:
        return 0
    differs = one[:length] != other[:length]
    # Every prompt is compared with all that are remembered: argmax alone says it in one pass.
    first = int(differs.argmax())
    return first if differs[first] else length
