"""Packed conversations give each conversation the logits that it has alone."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.processing.supervision import Supervised
from llava.train.tiny.packing import additive, pack

NUM_IMAGE_TOKENS = 4
PREFIX = [1, 7, 8, IMAGE_TOKEN_INDEX]


def sample(*ids: int, num_trained: int = 2, has_image: bool = True) -> Supervised:
    full = [*(PREFIX if has_image else [1]), *ids]
    return Supervised(full, [IGNORE_INDEX] * (len(full) - num_trained) + full[len(full) - num_trained :])


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def alone(model: LlamaForCausalLM, sample: Supervised, image: torch.Tensor) -> torch.Tensor:
    """Return the logits that predict the trained ids of one conversation."""
    table = model.get_input_embeddings()
    pieces = [
        image if token == IMAGE_TOKEN_INDEX else table(torch.tensor([token])) for token in sample.input_ids
    ]
    num_trained = sum(label != IGNORE_INDEX for label in sample.labels)
    logits = model(inputs_embeds=torch.cat(pieces)[None]).logits[0]
    return logits[-num_trained - 1 : -1]


@torch.no_grad()
def test_packed_logits_equal_those_of_each_conversation_alone() -> None:
    model = tiny_llama()
    images = torch.randn(2, NUM_IMAGE_TOKENS, 24)
    groups = [
        [sample(10, 11, 12, 13), sample(20, 21, 2, num_trained=1), sample(9, 30, 31, has_image=False)],
        [sample(14, 15, 16, 17, 18, num_trained=3)],
    ]
    packed = pack(groups, num_image_tokens=NUM_IMAGE_TOKENS)
    embeds = model.get_input_embeddings()(packed.input_ids.clamp(min=0))
    embeds[:, packed.image_slice] = images
    logits = model(
        inputs_embeds=embeds,
        attention_mask=additive(packed.attends, embeds.dtype),
        position_ids=packed.position_ids,
    ).logits
    for row, group in enumerate(groups):
        expected = torch.cat([alone(model, item, images[row]) for item in group])
        is_trained = packed.labels[row, 1:] != IGNORE_INDEX
        torch.testing.assert_close(logits[row, :-1][is_trained], expected, atol=1e-5, rtol=1e-4)


def test_labels_and_ids_of_a_packed_row_are_those_of_its_conversations() -> None:
    groups = [[sample(10, 11, 12), sample(20, 21, 22, num_trained=1)]]
    packed = pack(groups, num_image_tokens=NUM_IMAGE_TOKENS)
    assert packed.input_ids.tolist() == [[1, 7, 8, *[IMAGE_TOKEN_INDEX] * 4, 10, 11, 12, 20, 21, 22]]
    assert packed.labels.tolist() == [[*[IGNORE_INDEX] * 8, 11, 12, *[IGNORE_INDEX] * 2, 22]]
    assert packed.position_ids.tolist() == [[*range(10), 7, 8, 9]]
