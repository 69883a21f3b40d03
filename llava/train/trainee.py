"""A model to train and what belongs to it, and what every way of building one shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llava.model.checkpoint import Checkpoint
from llava.processing.pixels import ImageProcessor, ImageRules
from llava.processing.tokenizer import load_tokenizer
from llava.templates import ChatTemplate, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from llava.model.modeling import LlavaForCausalLM
    from llava.train.stages import Rules

_V0_VERSIONS = ("v0", "v0.5")
"""Values of the original's --version that leave its default conversation in place."""


@dataclass
class Trainee:
    """A model to train, and what belongs to it."""

    model: LlavaForCausalLM
    """Without a tower: transformers' own class for the language model."""
    tokenizer: PreTrainedTokenizerFast
    image_processor: ImageProcessor | None
    template: ChatTemplate
    num_image_tokens: int
    """Features per picture after the projector; 0 for a language model alone."""
    im_start_end: bool
    """Whether pictures are wrapped in <im_start> and <im_end>."""
    has_pictures: bool
    rules: ImageRules | None
    """How pictures are made into pixel values."""
    base: str
    """Where training began: an absolute path, or a hub id."""
    base_name: str
    """What adapter_config.json calls the base."""
    base_dtype: str
    """dtype that the base's config.json states."""
    checkpoint: Checkpoint
    """What `model.path` is."""
    tokenizer_folder: Path
    compute_dtype: torch.dtype
    seed: int
    notices: list[str] = field(default_factory=list)
    """What the person should know."""
    lora_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Adapter halves of `model.init_weights`, laid over by `apply_stage`."""
    given_rows: torch.Tensor | None = None
    """Rows of the token embedding that came with the projector, float[2, C]: <im_start>, <im_end>."""
    read_again: Callable[[str], torch.Tensor] | None = None
    """Reads one frozen parameter from its file again, on the CPU, where the model itself is sharded."""
    rules_of_stage: Rules | None = None
    """Set by `apply_stage`."""


def template_of(name: str) -> ChatTemplate:
    """Return the template of a name, or of a value of the original's `--version`; raises ConfigError."""
    return get_template("default" if name in _V0_VERSIONS else name)


def absolute(path: str) -> str:
    """Return a path that is valid from anywhere; a hub id stays as it is."""
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.exists() else path


def training_tokenizer(folder: Path, version: str, max_length: int) -> PreTrainedTokenizerFast:
    """Load the tokenizer with the padding token of the original's `--version` rules."""
    tokenizer = load_tokenizer(folder)
    if version == "v0":
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    elif tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = max_length
    return tokenizer
