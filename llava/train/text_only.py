"""A language model alone, to be trained on text: transformers' own class, no tower, no projector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from llava.errors import ConfigError, UsageError
from llava.model.checkpoint import Checkpoint
from llava.model.config import text_config
from llava.model.filling import add_rows
from llava.model.sources import TensorSource
from llava.train.config import ModelOptions, StageOptions
from llava.train.initial import read_init_weights
from llava.train.stages import bits_of, rules_of
from llava.train.trainee import Trainee, absolute, template_of, training_tokenizer


def build_language_model(
    checkpoint: Checkpoint,
    model: ModelOptions,
    stage: StageOptions,
    max_length: int,
    device: torch.device,
    compute_dtype: torch.dtype,
    seed: int,
) -> Trainee:
    """Build a language model alone, for text; what learns becomes float32 in `apply_stage`."""
    rules = rules_of(stage, has_pictures=False)
    if bits_of(stage) != 16:
        raise UsageError("A language model alone cannot be quantised here", remedy="Give model.vision_tower.")
    if model.im_start_end or model.im_patch_token:
        raise ConfigError(
            "Tokens for pictures are asked for, and there is no vision tower",
            remedy="Give model.vision_tower, or leave im_start_end and im_patch_token out.",
        )
    with _without_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=text_config(checkpoint.config, str(checkpoint.path / "config.json")),
            dtype=compute_dtype if rules.language_model == "lora" else torch.float32,
            attn_implementation=model.attn_implementation,
            trust_remote_code=False,
        ).to(device)
    tokenizer = training_tokenizer(checkpoint.path, model.template, max_length)
    _widen(loaded, len(tokenizer))
    adapters: dict[str, torch.Tensor] = {}
    if model.init_weights is not None:
        whole, adapters = read_init_weights(model.init_weights)
        _lay_over(loaded, whole)
    return Trainee(
        model=loaded,
        tokenizer=tokenizer,
        image_processor=None,
        template=template_of(model.template),
        num_image_tokens=0,
        im_start_end=False,
        has_pictures=False,
        rules=None,
        base=absolute(model.path),
        base_name=model.base_name or absolute(model.path),
        base_dtype=str(checkpoint.config.get("torch_dtype") or "float32"),
        checkpoint=checkpoint,
        tokenizer_folder=checkpoint.path,
        compute_dtype=compute_dtype,
        seed=seed,
        lora_weights=adapters,
    )


@contextmanager
def _without_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own on every rank, and into train.log."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _widen(model: Any, num_rows: int) -> None:
    """Add mean rows to the vocabulary where the tokenizer has more tokens than the model."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if num_rows <= len(table):
        return
    widened = add_rows(table.data, num_rows), add_rows(head.data, num_rows)
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(widened[1])
        model.get_input_embeddings().weight.copy_(widened[0])


def _lay_over(model: Any, source: TensorSource) -> None:
    """Copy tensors over a language model's own; raises UsageError for a name or shape it has not."""
    own: dict[str, torch.Tensor] = dict(model.named_parameters())
    for key in source.keys():
        if key not in own or tuple(own[key].shape) != source.shape(key):
            raise UsageError(
                f"init_weights holds {key} of shape {list(source.shape(key))}, which the model has not",
                remedy="Give the initial weights of this model.",
            )
        with torch.no_grad():
            own[key].copy_(source.read(key))
