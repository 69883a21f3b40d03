"""The released architectures at full size, on the meta device: parameter counts of the original's classes."""

from __future__ import annotations

from typing import Any

import pytest

from llava.model.builder import empty_model
from llava.model.config import make_config
from llava.model.towers import read_tower

LLAMA_7B = {
    "model_type": "llava_llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -4,
}
LLAMA_13B = LLAMA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
LARGE_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
}
CLIP_LAYER = 12_596_224
"""The layer of CLIP-L above the tap, counted in the reference and not built here."""


@pytest.mark.parametrize(
    ("language", "tower", "image_size", "total", "tower_total", "projector_total"),
    [
        (LLAMA_7B, {"model_type": "intern_vit_6b"}, 336, 12_303_370_624, 5_535_062_400, 29_892_608),
        (LLAMA_13B, {"model_type": "intern_vit_6b"}, 336, 18_593_535_360, 5_535_062_400, 42_608_640),
        (LLAMA_7B, {"model_type": "intern_vit_6b"}, 448, 12_304_804_224, 5_536_496_000, 29_892_608),
        (LLAMA_13B, {"model_type": "intern_vit_6b"}, 448, 18_594_968_960, 5_536_496_000, 42_608_640),
        (LLAMA_7B, LARGE_CLIP, 336, 7_062_902_784 - CLIP_LAYER, 303_507_456 - CLIP_LAYER, 20_979_712),
        (LLAMA_13B, LARGE_CLIP, 336, 13_350_839_296 - CLIP_LAYER, 303_507_456 - CLIP_LAYER, 31_467_520),
    ],
)
def test_full_size_models_have_the_originals_parameter_counts(
    language: dict[str, Any],
    tower: dict[str, Any],
    image_size: int,
    total: int,
    tower_total: int,
    projector_total: int,
) -> None:
    select_layer = -2 if tower is LARGE_CLIP else -4
    original = language | {"mm_vision_select_layer": select_layer}
    model = empty_model(make_config(original, read_tower(tower, source="test"), image_size=image_size))
    counts = [
        sum(parameter.numel() for parameter in module.parameters())
        for module in (model, model.model.vision_tower, model.model.multi_modal_projector)
    ]
    assert counts == [total, tower_total, projector_total]
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_the_whole_internvit_has_the_originals_parameter_count() -> None:
    tower = read_tower({"model_type": "intern_vit_6b"}, source="test")
    original = LLAMA_7B | {"mm_vision_select_layer": -1, "num_hidden_layers": 1}
    model = empty_model(make_config(original, tower, image_size=224))
    assert sum(p.numel() for p in model.model.vision_tower.parameters()) == 5_902_793_600
