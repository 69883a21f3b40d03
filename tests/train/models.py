"""Tiny models and batches for the trainer's tests."""

from __future__ import annotations

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Batch
from llava.model.builder import new_model
from llava.model.modeling import LlavaForCausalLM

LANGUAGE = {
    "model_type": "llava",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -1,
    "mm_hidden_size": 32,
}
TOWER = {
    "model_type": "intern_vit_6b",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
}
NUM_IMAGE_TOKENS = 4
IMAGE_SIZE = 28

Sample = tuple[list[int], list[int], int]
"""Expanded ids, labels, number of pictures."""


def tiny_model(seed: int = 0) -> LlavaForCausalLM:
    """Return a two-layer model with a two-layer InternViT; float32 on the CPU."""
    return new_model(LANGUAGE, TOWER, image_size=IMAGE_SIZE, seed=seed)


def random_samples(num: int, *, seed: int = 0, with_pictures: bool = True) -> list[Sample]:
    """Return samples of random ids, about two in three with a picture."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    samples = []
    for number in range(num):
        has_picture = with_pictures and number % 3 != 1
        text = torch.randint(3, 97, (pick(4, 30),), generator=generator).tolist()
        picture = [IMAGE_TOKEN_INDEX] * (NUM_IMAGE_TOKENS if has_picture else 0)
        ids = [1, *picture, *text]
        num_masked = 1 + len(picture) + pick(1, 4)
        labels = [IGNORE_INDEX] * num_masked + ids[num_masked:]
        samples.append((ids, labels, int(has_picture)))
    return samples


def pictures_of(samples: list[Sample]) -> torch.Tensor:
    """Return float32[P, 3, S, S], a function of each sample's ids."""
    made = [
        torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(sum(ids)))
        for ids, _, num in samples
        if num
    ]
    return torch.stack(made) if made else torch.zeros(0, 3, IMAGE_SIZE, IMAGE_SIZE)


def packed(samples: list[Sample]) -> Batch:
    """Lay samples end to end."""
    return Batch(
        input_ids=torch.tensor([[token for ids, _, _ in samples for token in ids]], dtype=torch.int64),
        labels=torch.tensor([[label for _, labels, _ in samples for label in labels]], dtype=torch.int64),
        position_ids=torch.tensor([[p for ids, _, _ in samples for p in range(len(ids))]], dtype=torch.int64),
        attention_mask=None,
        segments=tuple(len(ids) for ids, _, _ in samples),
        pixel_values=pictures_of(samples),
        num_targets=num_targets(samples),
        num_tokens=sum(len(ids) for ids, _, _ in samples),
        ids=tuple(str(number) for number in range(len(samples))),
        sources=("data",) * len(samples),
        targets_per_sample=tuple(num_targets([sample]) for sample in samples),
    )


def padded(samples: list[Sample]) -> Batch:
    """Pad samples on the right."""
    longest = max(len(ids) for ids, _, _ in samples)

    def table(rows: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])

    lengths = torch.tensor([len(ids) for ids, _, _ in samples])
    return Batch(
        input_ids=table([ids for ids, _, _ in samples], 0),
        labels=table([labels for _, labels, _ in samples], IGNORE_INDEX),
        position_ids=torch.arange(longest).expand(len(samples), -1),
        attention_mask=torch.arange(longest)[None] < lengths[:, None],
        segments=None,
        pixel_values=pictures_of(samples),
        num_targets=num_targets(samples),
        num_tokens=int(lengths.sum()),
        ids=tuple(str(number) for number in range(len(samples))),
        sources=("data",) * len(samples),
        targets_per_sample=tuple(num_targets([sample]) for sample in samples),
    )


def num_targets(samples: list[Sample]) -> int:
    """Return the labels that are trained."""
    return sum(label != IGNORE_INDEX for _, labels, _ in samples for label in labels)
