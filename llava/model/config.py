"""The original's config.json, read once into typed values, and the native configuration made from it.

A checkpoint's config.json is the language model's with `mm_*` keys added (spec 2.1). Inherited names stay at
this boundary and on the model's config, where outside code looks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers import LlavaConfig as NativeLlavaConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import ConfigError
from llava.log import get_logger
from llava.model.projector import PROJECTOR_TYPES, parse_mlp
from llava.model.towers import Tower

logger = get_logger(__name__)

SELECT_FEATURES = ("patch", "cls_patch")
ASPECT_RATIOS = ("pad", "square")
_READ = (
    "mm_vision_tower",
    "mm_hidden_size",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_projector_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "image_aspect_ratio",
    "tokenizer_padding_side",
    "tokenizer_model_max_length",
    "max_sequence_length",
)
_INFORMATIONAL = frozenset(
    {
        "use_mm_proj",
        "image_grid_pinpoints",
        "tune_mm_mlp_adapter",
        "freeze_mm_mlp_adapter",
        "tune_vit_pos_embedding",
        "mm_projector_lr",
        "mm_vision_tower_lr",
        "unfreeze_mm_vision_tower",
        "pretrain_mm_mlp_adapter",
        "mm_patch_merge_type",
        "mm_resampler_type",
        "freeze_mm_vision_resampler",
        "tune_mm_vision_resampler",
        "image_crop_resolution",
        "image_split_resolution",
        "s2",
        "s2_scales",
    }
)
_NOT_TEXT = frozenset(
    {
        "architectures",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "auto_map",
        "_name_or_path",
    }
)


class LlavaConfig(NativeLlavaConfig):
    """Native configuration plus what the original keeps on its config, in the original's names."""

    model_type = "llava_llama"

    mm_vision_tower: str | None = None
    """Where the tower came from: hub id or path, as written by the training that made the checkpoint."""
    mm_hidden_size: int = 1024
    """Width of the tower's features."""
    mm_vision_select_layer: int = -2
    """Index into the whole tower's hidden states; the layers above it are not built."""
    mm_vision_select_feature: str = "patch"
    mm_projector_type: str = "linear"
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    use_mm_proj: bool = True
    image_aspect_ratio: str = "square"
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
    max_sequence_length: int | None = None
    tower: dict[str, Any] | None = None
    """The tower's own config.json, all layers counted, `image_size` as it is used."""
    extra: dict[str, Any] | None = None
    """Keys of the original's config.json that inform and change nothing; kept when the model is saved."""


class LlavaMptConfig(LlavaConfig):
    """The same over MPT, under the name that outside code imports."""

    model_type = "llava_mpt"


def make_config(
    original: Mapping[str, Any], tower: Tower, *, image_size: int, source: str = "config.json"
) -> LlavaConfig:
    """Make the native configuration of a model from the original's config.json and its tower.

    `image_size`: side of the pictures in pixels. Raises ConfigError naming the field for a value that this
    family does not have.
    """
    check_values(original, source)
    text = text_config(original, source)
    select_layer = int(original["mm_vision_select_layer"])
    select_feature = original.get("mm_vision_select_feature") or "patch"
    vision = tower.native_config(select_layer=select_layer, image_size=image_size)
    num_patches = (image_size // tower.patch_size) ** 2
    config_class = LlavaMptConfig if text.model_type == "mpt" else LlavaConfig
    return config_class(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE_TOKEN_INDEX,
        image_seq_length=num_patches + (select_feature == "cls_patch"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full" if select_feature == "cls_patch" else "default",
        tie_word_embeddings=bool(text.tie_word_embeddings),
        mm_vision_tower=original.get("mm_vision_tower"),
        mm_hidden_size=tower.hidden_size,
        mm_vision_select_layer=select_layer,
        mm_vision_select_feature=select_feature,
        mm_projector_type=original.get("mm_projector_type") or "linear",
        mm_use_im_start_end=bool(original.get("mm_use_im_start_end", False)),
        mm_use_im_patch_token=bool(original.get("mm_use_im_patch_token", False)),
        image_aspect_ratio=original.get("image_aspect_ratio") or "square",
        tokenizer_padding_side=original.get("tokenizer_padding_side") or "right",
        tokenizer_model_max_length=original.get("tokenizer_model_max_length"),
        max_sequence_length=original.get("max_sequence_length"),
        tower=dict(tower.fields) | {"image_size": image_size},
        extra={name: value for name, value in original.items() if name in _INFORMATIONAL},
    )


def check_values(original: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for a `mm_*` value that is not of this family; log keys that nobody knows."""
    if not isinstance(original.get("mm_vision_select_layer"), int):
        raise ConfigError(
            f"mm_vision_select_layer is {original.get('mm_vision_select_layer')!r} in {source}",
            remedy="Give the index of the tapped layer: -2 for CLIP, -4 for InternViT-6B-224px.",
        )
    feature = original.get("mm_vision_select_feature") or "patch"
    if feature not in SELECT_FEATURES:
        raise ConfigError.of_field("mm_vision_select_feature", feature, SELECT_FEATURES, source=source)
    aspect = original.get("image_aspect_ratio") or "square"
    if aspect not in ASPECT_RATIOS:
        raise ConfigError.of_field("image_aspect_ratio", aspect, ASPECT_RATIOS, source=source)
    projector = original.get("mm_projector_type") or "linear"
    if projector not in PROJECTOR_TYPES:
        parse_mlp(str(projector))
    if original.get("s2"):
        raise ConfigError(f"s2 is set in {source}: multi-scale towers are not supported")
    for name in original:
        if name.startswith("mm_") and name not in _READ and name not in _INFORMATIONAL:
            logger.info("%s: %s is not known and has no effect", source, name)


def text_config(original: Mapping[str, Any], source: str) -> PreTrainedConfig:
    """Return the language model's configuration: the original's config.json without the `mm_*` keys.

    `llava_llama`, the released `llava`, and `llama` are LLaMA; `llava_X` is model type X of transformers.
    """
    model_type = str(original.get("model_type", "")).removeprefix("llava_")
    model_type = "llama" if model_type == "llava" else model_type
    if model_type not in CONFIG_MAPPING:
        known = ("llava", "llava_llama", "llava_mpt", "llava_mistral", "llava_qwen2", "llama")
        raise ConfigError.of_field("model_type", original.get("model_type"), known, source=source)
    fields = {
        name: value
        for name, value in original.items()
        if name not in _NOT_TEXT and name not in _READ and name not in _INFORMATIONAL
    }
    if isinstance(fields.get("pad_token_id"), int) and fields["pad_token_id"] < 0:
        # LLaMA 1 said -1 for "none"; torch would take it for the last row of the vocabulary.
        fields["pad_token_id"] = None
    try:
        return CONFIG_MAPPING[model_type](**fields)
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{source} is no configuration of a {model_type} model: {message}") from error


def original_config(config: LlavaConfig, *, dtype: str) -> dict[str, Any]:
    """Return the original's config.json for a model: the inverse of `make_config` and `text_config`."""
    text_type = config.text_config.model_type
    of_every_model = PreTrainedConfig().to_dict()
    text = {
        name: value
        for name, value in config.text_config.to_dict().items()
        if name not in of_every_model or name in ("use_cache", "tie_word_embeddings")
    }
    rope = text.pop("rope_parameters", None)
    if rope is not None:
        # The original's transformers read these two.
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        is_plain = scaling.get("rope_type", "default") == "default"
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = None if is_plain else {"type": scaling["rope_type"], **scaling}
    names = {
        "llama": "LlavaLlamaForCausalLM",
        "mpt": "LlavaMptForCausalLM",
        "mistral": "LlavaMistralForCausalLM",
    }
    own = {name: getattr(config, name) for name in _READ if getattr(config, name) is not None}
    return {
        "architectures": [names.get(text_type, "LlavaForCausalLM")],
        **text,
        **(config.extra or {}),
        **own,
        "use_mm_proj": True,
        "model_type": f"llava_{text_type}",
        "torch_dtype": dtype,
    }
