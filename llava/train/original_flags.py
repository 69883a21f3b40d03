"""The flags that the original adds to transformers.TrainingArguments, and those that are this project's own.

The original's: `llava/train/train.py` and `train_custom.py` of OpenGVLab/InternVL (internvl_chat_llava), and
what haotian-liu/LLaVA adds. This project's: every option of a run, by its field's name where no original flag
has that name, and always as --section.field.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from llava.train.options import Option, options
from llava.train.training_arguments import TRAINING_ARGUMENTS, Flag, Kind, idle, refused, used

ORIGINAL_FLAGS = (
    *used(
        "text",
        {
            "model_name_or_path": "model.path",
            "version": "model.template",
            "vision_tower": "model.vision_tower",
            "pretrain_mm_mlp_adapter": "model.projector",
            "mm_projector_type": "model.projector_type",
            "mm_vision_select_feature": "model.select_feature",
            "data_path": "data.path",
            "meta_path": "data.meta",
            "image_folder": "data.image_folder",
            "image_aspect_ratio": "data.image_aspect_ratio",
            "quant_type": "stage.quant_type",
            "lora_bias": "stage.lora_bias",
        },
    ),
    *used(
        "int",
        {
            "mm_vision_select_layer": "model.select_layer",
            "model_max_length": "data.max_length",
            "bits": "stage.bits",
            "lora_r": "stage.lora_r",
        },
    ),
    *used(
        "float",
        {
            "lora_alpha": "stage.lora_alpha",
            "lora_dropout": "stage.lora_dropout",
            "mm_projector_lr": "stage.projector_lr",
        },
    ),
    *used(
        "switch",
        {
            "freeze_backbone": "stage.freeze_language_model",
            "freeze_llm": "stage.name = align",
            "tune_mm_mlp_adapter": "stage.name = align",
            "tune_vit_pos_embedding": "stage.positions",
            "freeze_mm_mlp_adapter": "stage.freeze_projector",
            "mm_use_im_start_end": "model.im_start_end",
            "mm_use_im_patch_token": "model.im_patch_token",
            "double_quant": "stage.double_quant",
            "lora_enable": "stage.name = lora (qlora with bits 4 or 8)",
            "group_by_modality_length": "data.order",
        },
    ),
    *idle("data is always read sample by sample", "switch", "lazy_preprocess", "true"),
    *idle("a vision tower makes the run multimodal", "switch", "is_multimodal", "true"),
    *idle("files are read where they lie; hub files lie in the hub's own cache", "text", "cache_dir"),
    *idle("nothing reads it, in the original neither", "text", "lora_weight_path", ""),
    *idle("MPT's attention is transformers' own, with the same results", "text", "mpt_attn_impl"),
    *refused("pictures are trained as one view each", "text", "image_grid_pinpoints", "", "none"),
    *refused("pictures are trained as one view each", "text", "mm_patch_merge_type", "flat"),
)

OWN_FLAGS = {
    "modality_sampler": Flag(
        "modality_sampler", "text", "used", "which variant --group_by_modality_length is: internvl or llava"
    ),
    "dry_run": Flag("dry_run", "switch", "used", "print the recipe that the flags mean, and stop"),
}


@functools.cache
def flags() -> Mapping[str, Flag]:
    """Return every accepted flag by its name, the original's first."""
    known = {flag.name: flag for flag in (*ORIGINAL_FLAGS, *TRAINING_ARGUMENTS)} | OWN_FLAGS
    for option in options().values():
        known.setdefault(option.path, Flag(option.path, kind_of(option), "used", option.path))
    for name, path in short_names().items():
        known.setdefault(name, Flag(name, kind_of(options()[path]), "used", path))
    return known


@functools.cache
def short_names() -> Mapping[str, str]:
    """Return the option's path by its field's name, for the names that only one section has."""
    originals = {flag.name for flag in (*ORIGINAL_FLAGS, *TRAINING_ARGUMENTS)} | set(OWN_FLAGS)
    names = [option.name for option in options().values()]
    return {
        option.name: path
        for path, option in options().items()
        if "." in path and names.count(option.name) == 1 and option.name not in originals
    }


def kind_of(option: Option) -> Kind:
    """Return how an option's value is spelled on the command line."""
    if option.is_switch:
        return "switch"
    return "list" if option.metavar == "A,B,..." else "text"
