"""The model of a recipe without its weights: from config.json, or from the known shapes of its family.

The result is the model's own class with parameters on the meta device, so that counts, FLOPs and activations
are those of the code that trains, whatever the family.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from llava.errors import CheckpointError
from llava.files import read_json
from llava.model.builder import empty_model
from llava.model.config import make_config, text_config
from llava.model.quantize import quantised_names
from llava.model.saving import is_adapter, plain_name
from llava.model.towers import Tower, read_tower
from llava.train import lora
from llava.train.config import ModelOptions, StageOptions
from llava.train.stages import bits_of, learning_names, part_of, rules_of, train_mode

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_LLAMA_7B = _LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_LLAMA_13B = _LLAMA | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
LANGUAGE_MODELS = {
    # What a name must hold, all of it, in lower case.
    ("vicuna", "7b"): _LLAMA_7B,
    ("vicuna", "13b"): _LLAMA_13B,
    ("llama-2", "7b"): _LLAMA_7B,
    ("llama-2", "13b"): _LLAMA_13B,
    ("llava", "7b"): _LLAMA_7B,
    ("llava", "13b"): _LLAMA_13B,
}
_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
    "image_size": 224,
}
_INTERNVIT = {"model_type": "intern_vit_6b", "image_size": 224}
TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": _CLIP_L | {"image_size": 336},
    "clip-vit-large-patch14": _CLIP_L,
    "internvit-6b-224px": _INTERNVIT,
    "internvit-6b-448px-v1-2": _INTERNVIT | {"image_size": 448, "num_hidden_layers": 45},
    "internvit-6b-448px-v1-5": _INTERNVIT | {"image_size": 448, "num_hidden_layers": 45},
    "internvit-6b-448px": _INTERNVIT | {"image_size": 448},
}
_CHECKPOINT_TOWER = "clip-vit-large-patch14-336"
"""Of the released LLaVA-1.5 checkpoints, when they are not on disk."""
_INTERNVIT_224_USED_AT = 336


@dataclass(frozen=True)
class Shapes:
    """What is known of a model before its weights are."""

    language: Mapping[str, Any]
    """The language model's config.json with the `mm_*` keys."""
    tower: Tower | None
    image_size: int
    """Pixels a side; 0 without a tower."""
    source: str
    """Where this comes from, in words."""
    folder: Path | None
    """Of the tokenizer, when the model is on disk."""

    @property
    def num_image_tokens(self) -> int:
        """Positions of a picture in the language model."""
        if self.tower is None:
            return 0
        has_class = self.language.get("mm_vision_select_feature") == "cls_patch"
        return (self.image_size // self.tower.patch_size) ** 2 + has_class


def find_shapes(model: ModelOptions) -> Shapes:
    """Return the shapes of a recipe's model, which need not be on disk; weights are not read.

    Raises CheckpointError, that says what to give, for a model that is neither here nor of a known family.
    """
    folder = Path(model.path).expanduser()
    stored = _stored(folder)
    config = dict(stored) if stored is not None else dict(_known_language(model.path))
    source = f"{folder / 'config.json'}" if stored is not None else f"known shape of {model.path}"
    if isinstance(config.get("text_config"), Mapping):
        config = {"vision_config": config.get("vision_config")} | dict(config["text_config"])
    config = {"tie_word_embeddings": False} | config
    is_checkpoint = stored is None and "llava" in Path(model.path).name.lower()
    tower_name = model.vision_tower or config.get("mm_vision_tower")
    tower = _tower(folder, config, tower_name, is_checkpoint=is_checkpoint)
    text = {key: value for key, value in config.items() if key != "vision_config"}
    defaults = {"mm_vision_select_layer": -2 if is_checkpoint else -1, "mm_projector_type": "linear"}
    if is_checkpoint:
        defaults["mm_projector_type"] = "mlp2x_gelu"
    asked = {
        "mm_vision_select_layer": model.select_layer,
        "mm_vision_select_feature": model.select_feature,
        "mm_projector_type": model.projector_type,
        "mm_use_im_start_end": model.im_start_end or None,
    }
    language = defaults | text | {name: value for name, value in asked.items() if value is not None}
    size = 0 if tower is None else model.image_size or _image_size(folder, tower)
    return Shapes(language, tower, size, source, folder if stored is not None else None)


def mapped_bytes(shapes: Shapes) -> int:
    """Return the bytes of the model's own weight files: mapped while a run lasts, and resident once read.

    They count as memory of a process, though the system takes them back when it needs to.
    """
    if shapes.folder is None:
        return 0
    return sum(path.stat().st_size for path in shapes.folder.glob("*.safetensors"))


def meta_model(shapes: Shapes, stage: StageOptions) -> Any:
    """Return the model on the meta device, with adapters, `requires_grad` and modes as `stage` sets them.

    Raises ConfigError as the trainer would.
    """
    if shapes.tower is not None:
        config = make_config(
            shapes.language, shapes.tower, image_size=shapes.image_size, source=shapes.source
        )
        model: Any = empty_model(config)
        im_start_end = config.mm_use_im_start_end
    else:
        with no_init_weights(), init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(text_config(shapes.language, shapes.source))
        im_start_end = False
    rules = rules_of(stage, has_pictures=shapes.tower is not None, im_start_end=im_start_end)
    linear = lora.linear_names(model, rules.lora_parts)
    learning = learning_names([name for name, _ in model.named_parameters()], rules, linear=linear)
    if linear:
        with torch.device("meta"):
            lora.add_adapters(model, linear, stage, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or plain_name(name) in learning)
    train_mode(model)
    return model


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, by what becomes of them."""

    vision: int
    projector: int
    language_model: int
    trained: int
    """Adapters included."""
    frozen: int
    """Not quantised."""
    quantised: int
    largest_layer: int
    """Of the largest layer of a stack: what a sharding engine gathers at once."""
    outside_layers: int
    """In no stack: embeddings, projector, head."""
    largest_trained: int
    """Of the largest tensor that learns."""

    @property
    def total(self) -> int:
        """All of them, adapters included."""
        return self.trained + self.frozen + self.quantised


def count_parameters(model: nn.Module, stage: StageOptions) -> Counts:
    """Count the parameters of a `meta_model`."""
    quantised = set()
    if bits_of(stage) != 16:
        plain = copy.copy(quantised_names(model))
        adapted = [name for name, _ in model.named_modules() if name.endswith("base_layer")]
        quantised = {f"{name}.weight" for name in (*plain, *adapted) if "lora_" not in name}
        quantised = {name for name in quantised if part_of(name) == "language_model"}
    parts = dict.fromkeys(("vision", "projector", "language_model"), 0)
    kinds = {"trained": 0, "frozen": 0, "quantised": 0}
    layers: dict[str, int] = {}
    largest = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        parts[part_of(name)] += size if not is_adapter(name) else 0
        kind = "trained" if parameter.requires_grad else "quantised" if name in quantised else "frozen"
        kinds[kind] += size
        largest = max(largest, size if parameter.requires_grad else 0)
        layer = _layer_of(name)
        layers[layer] = layers.get(layer, 0) + size
    outside = layers.pop("", 0)
    return Counts(
        **parts,
        **kinds,
        largest_layer=max(layers.values(), default=0),
        outside_layers=outside,
        largest_trained=largest,
    )


def _layer_of(name: str) -> str:
    """Return "model.language_model.layers.3" for what is in a layer, and "" for what is in none."""
    words = name.split(".")
    number = next((place for place, word in enumerate(words) if word.isdigit()), None)
    in_projector = "multi_modal_projector" in words
    return "" if number is None or in_projector else ".".join(words[: number + 1])


def _stored(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is not a JSON object", remedy="Download the file again.")
    return content


def _known_language(path: str) -> Mapping[str, Any]:
    name = path.rstrip("/").lower().rpartition("/")[2]
    for words, config in LANGUAGE_MODELS.items():
        if all(word in name.replace("_", "-") for word in words):
            return config
    known = ", ".join("-".join(words) for words in LANGUAGE_MODELS)
    raise CheckpointError(
        f"{path} is not on this machine, and its shape is not known",
        remedy=f"Give --model.path FOLDER with its config.json (no weights needed). Known: {known}.",
    )


def _tower(folder: Path, config: Mapping[str, Any], name: str | None, *, is_checkpoint: bool) -> Tower | None:
    """Return the tower: its own folder's, the one that the checkpoint describes, or a known one."""
    if name is not None:
        beside = folder.parent / Path(name).name
        for place in (Path(name).expanduser(), beside, folder / Path(name).name):
            stored = _stored(place)
            if stored is not None:
                return read_tower(stored, source=str(place / "config.json"))
    manifest = folder / "llava.json"
    if manifest.is_file():
        described = read_json(manifest).get("vision_config")
        if described:
            return read_tower(described, source=str(manifest))
    if isinstance(config.get("vision_config"), Mapping):
        return read_tower(config["vision_config"], source=str(folder / "config.json"))
    if name is None and not is_checkpoint:
        return None
    key = Path(name or _CHECKPOINT_TOWER).name.lower()
    if key not in TOWERS:
        raise CheckpointError(
            f"the vision tower {name} is not on this machine, and its shape is not known",
            remedy=f"Give --model.vision_tower FOLDER with its config.json. Known: {', '.join(TOWERS)}.",
        )
    return read_tower(TOWERS[key], source=f"known shape of {key}")


def _image_size(folder: Path, tower: Tower) -> int:
    manifest = folder / "llava.json"
    if manifest.is_file():
        image = read_json(manifest).get("image")
        if isinstance(image, Mapping) and isinstance(image.get("size"), int):
            return int(image["size"])
    if tower.family == "internvit" and tower.image_size == 224:
        return _INTERNVIT_224_USED_AT
    return tower.image_size
