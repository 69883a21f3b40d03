"""The embedded model's parts become checkpoints: what the trainer begins with, and what is shipped.

python -m llava.train.tiny.export --trained runs/tiny/stage-2 --out InternVL-Chat-Tiny
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLVisionConfig, LlamaConfig

from llava import log
from llava.demo import embedded_model_path
from llava.model.builder import empty_model, load_model
from llava.model.config import LlavaConfig, make_config
from llava.model.device import DTYPES
from llava.model.saving import save_checkpoint
from llava.model.towers import Tower, read_tower
from llava.processing.tokenizer import load_tokenizer
from llava.train.tiny.chat import language_config, make_projector
from llava.train.tiny.tokenizer import CONTEXT_LENGTH, TEMPLATE
from llava.train.tiny.tower import RULES, tower_config

NAME = "InternVL-Chat-Tiny"

_PARTS = {
    "tower.": "model.vision_tower.",
    "projector.0.": "model.multi_modal_projector.0.",
    "projector.2.": "model.multi_modal_projector.2.",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
}


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True, help="what `llava train` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    args = parser.parse_args()
    log.configure(verbose=True)
    export(args.trained, args.out)


def write_base(run: Path, folder: Path) -> None:
    """Write what the trainer begins with: pretrained tower and language model, fresh projector."""
    state = torch.load(run / "finetune" / "state.pt", weights_only=True)
    torch.manual_seed(2)
    fresh = {f"projector.{name}": value for name, value in make_projector().state_dict().items()}
    write(
        state["model"] | fresh,
        run / "tokenizer",
        folder,
        {"program": "llava.train.tiny.recipe", "steps": state["step"]},
    )


def write(state: Mapping[str, torch.Tensor], tokenizer: Path, folder: Path, history: dict[str, Any]) -> None:
    """Write a chat stage's state dict as a checkpoint; weights are stored as float16."""
    model = empty_model(full_config())
    model.load_state_dict(rename(state), strict=True, assign=True)
    save_checkpoint(
        folder,
        model=model,
        tokenizer=load_tokenizer(tokenizer),
        rules=RULES,
        template=TEMPLATE,
        dtype=DTYPES["float16"],
        recipe=history,
    )
    shutil.copyfile(tokenizer / "tokenizer.model", folder / "tokenizer.model")


def export(trained: Path, folder: Path) -> None:
    """Write what the trainer wrote as it is shipped: weights as float16, only the checkpoint's files."""
    loaded = load_model(trained)
    manifest = loaded.checkpoint.manifest
    save_checkpoint(
        folder,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        rules=RULES,
        template=TEMPLATE,
        dtype=DTYPES["float16"],
        recipe=None if manifest is None else dict(manifest.recipe or {}),
    )
    shutil.copyfile(embedded_model_path() / "tokenizer.model", folder / "tokenizer.model")


def full_config() -> LlavaConfig:
    """Return the whole model's configuration, in the original's fields."""
    tower = original_tower(tower_config())
    return make_config(
        original_language(language_config()) | _mm_fields(tower), tower, image_size=RULES.size, source=NAME
    )


def _mm_fields(tower: Tower) -> dict[str, Any]:
    return {
        "mm_vision_tower": "InternViT-Tiny-64px",
        "mm_hidden_size": tower.hidden_size,
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": RULES.aspect,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": CONTEXT_LENGTH,
    }


def original_tower(config: InternVLVisionConfig) -> Tower:
    """Return a native tower configuration in the original's spelling."""
    return read_tower(config.to_dict(), source=NAME)


def original_language(config: LlamaConfig) -> dict[str, Any]:
    """Return Llama's fields as the original's config.json has them."""
    fields = config.to_dict()
    theta = (fields.pop("rope_parameters", None) or {}).get("rope_theta", 10000.0)
    return fields | {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "rope_theta": theta}


def rename(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parts' weights by the whole model's names; the dense heads are left behind."""
    result = {}
    for name, value in state.items():
        for before, after in _PARTS.items():
            if name.startswith(before):
                result[after + name.removeprefix(before)] = value
    return result


if __name__ == "__main__":
    main()
