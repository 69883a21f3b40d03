"""Checkpoints of the shapes that the engine is measured with: random weights, a real Llama vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llava.model.builder import new_model
from llava.model.saving import save_checkpoint
from llava.processing.pixels import clip_rules
from llava.processing.tokenizer import load_tokenizer

VOCABULARY = (
    Path(__file__).parents[1] / "tests" / "fixtures" / "eval" / "labels" / "tokenizer_llama_nonlegacy"
)
IMAGE_SIZE = 224
LANGUAGE: dict[str, Any] = {
    "model_type": "llava",
    "vocab_size": 32064,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "mm_vision_tower": "tower",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
}
SHAPES: dict[str, dict[str, Any]] = {
    "110M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "mm_hidden_size": 384,
    },
    "1.1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "mm_hidden_size": 384,
    },
}
TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 13,
    "num_attention_heads": 6,
    "image_size": IMAGE_SIZE,
    "patch_size": 14,
}
"""One layer more than the 12 that the tap at -2 leaves to run."""


def checkpoint(shape: str, work: Path, *, in_half: bool = False) -> Path:
    """Return the folder of a checkpoint under `work`, written if it is not there.

    in_half: in 16 bits, and it says words alone: no token that ends an answer or has no text is ever likely.
    """
    folder = work / f"random-{shape}{'-words' if in_half else ''}"
    if not (folder / "llava.json").exists():
        model = new_model(LANGUAGE | SHAPES[shape], TOWER, image_size=IMAGE_SIZE, seed=0)
        tokenizer = load_tokenizer(VOCABULARY)
        if in_half:
            with torch.no_grad():
                model.lm_head.weight[tokenizer.all_special_ids] = 0
                model.lm_head.weight[len(tokenizer) :] = 0
        save_checkpoint(
            folder,
            model=model,
            tokenizer=tokenizer,
            rules=clip_rules(IMAGE_SIZE),
            template="vicuna_v1",
            dtype=torch.float16 if in_half else None,
        )
    return folder
