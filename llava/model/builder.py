"""Load a checkpoint of any kind into a model that answers.

    recognise -> assemble (parts, nothing read) -> empty model -> fill, shard by shard -> LoadedModel

`load_pretrained_model` is the original's entry point of the same name, for outside code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import init_empty_weights
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import ConfigError
from llava.log import get_logger
from llava.model.assembling import Parts, assemble
from llava.model.checkpoint import Checkpoint, recognise
from llava.model.config import LlavaConfig, make_config
from llava.model.device import resolve_device, resolve_dtype
from llava.model.filling import fill, make_plan, store_plainly
from llava.model.modeling import LlavaForCausalLM, LlavaLlamaForCausalLM, LlavaMptForCausalLM
from llava.model.towers import read_tower
from llava.processing.pixels import ImageProcessor
from llava.processing.tokenizer import load_tokenizer
from llava.templates import ChatTemplate, get_template, guess_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = get_logger(__name__)

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded."""

    base: str | None = None
    """Language model under a projector or LoRA checkpoint."""
    bits: Literal[4, 8] | None = None
    """Quantise the language model's linear layers."""
    device: str | None = None
    """"auto", "cpu", "cuda", "cuda:1", "mps"; None is "auto"."""
    dtype: str | None = None
    """"float32", "bfloat16", "float16"; None takes the device's own."""
    device_map: str | dict[str, Any] | None = None
    """"auto" spreads whole blocks over several GPUs; a dict says where each module goes."""
    image_size: int | None = None
    """Pixels, over the checkpoint's own."""
    template: str | None = None
    """Prompt template, over the checkpoint's own."""
    attn_implementation: str | None = None
    """One of ATTENTION; None is "sdpa"."""

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise ConfigError.of_field("bits", self.bits, ("4", "8"))
        if self.attn_implementation not in (None, *ATTENTION):
            raise ConfigError.of_field("attn_implementation", self.attn_implementation, ATTENTION)
        if self.template is not None:
            get_template(self.template)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer, and what it needs to be asked rightly."""

    model: LlavaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    image_processor: ImageProcessor
    num_image_tokens: int
    """Features per picture after the projector."""
    im_start_end: bool
    """Whether pictures are wrapped in <im_start> and <im_end>."""
    template: ChatTemplate
    template_source: str
    """Why this template."""
    context_length: int
    """Tokens that prompt, pictures and answer may have together."""
    checkpoint: Checkpoint
    device: torch.device
    """Where input goes."""
    notices: tuple[str, ...] = field(default=())
    """What the person should know about how it was loaded."""


def load_model(path: str | os.PathLike[str], options: LoadOptions | None = None) -> LoadedModel:
    """Load the checkpoint folder (or hub id) `path`.

    Raises CheckpointError, WeightsError, ConfigError, TokenizerError, DependencyError.
    """
    options = options or LoadOptions()
    checkpoint = recognise(path)
    parts = assemble(checkpoint, base=options.base, image_size=options.image_size)
    tokenizer = load_tokenizer(parts.tokenizer_folder)
    parts.vocab_size = max(parts.vocab_size, add_special_tokens(tokenizer, parts))
    template, template_source = choose_template(parts, options.template)
    model, device = _load_weights(parts, options)
    model.image_processor = ImageProcessor(parts.rules)
    model.generation_config = _generation_config(model.config, tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        image_processor=model.image_processor,
        num_image_tokens=model.config.image_seq_length,
        im_start_end=model.config.mm_use_im_start_end,
        template=template,
        template_source=template_source,
        context_length=context_length(model.config),
        checkpoint=checkpoint,
        device=device,
        notices=tuple(parts.notices),
    )


def empty_model(config: LlavaConfig, *, attn_implementation: str | None = None) -> LlavaForCausalLM:
    """Return a model of `config` whose parameters are on the meta device; its buffers are real."""
    attention = attn_implementation or _default_attention(config)
    with _without_initialisation(), init_empty_weights(include_buffers=False):
        model = model_class(config)._from_config(config, attn_implementation=attention)
    model.tie_weights()
    return model.eval()


def model_class(config: LlavaConfig) -> type[LlavaForCausalLM]:
    """Return the class with the original's name for the language model of `config`."""
    named = {"llama": LlavaLlamaForCausalLM, "mpt": LlavaMptForCausalLM}
    return named.get(config.text_config.model_type, LlavaForCausalLM)


def choose_template(parts: Parts, asked: str | None) -> tuple[ChatTemplate, str]:
    """Return the prompt template and why: asked for, llava.json, the tower, then the table of names."""
    if asked is not None:
        return get_template(asked), "asked for"
    manifest = parts.checkpoint.manifest
    if manifest is not None and manifest.template is not None:
        return get_template(manifest.template), "llava.json"
    if parts.tower.family == "internvit":
        return get_template("vicuna_v1"), "an InternViT tower: the prompt of InternVL-Chat V1.0"
    if parts.original.get("model_type") == "llava_mpt":
        return get_template("mpt"), "an MPT language model"
    guess = guess_template(model_name(parts.checkpoint))
    parts.notices.append(f"Prompt template {guess.template.name}: {guess.reason}.")
    return guess.template, guess.reason


def model_name(checkpoint: Checkpoint) -> str:
    """Return what a released checkpoint is called: its folder, or parent and folder for `checkpoint-N`."""
    folder = checkpoint.path.resolve()
    return f"{folder.parent.name}_{folder.name}" if folder.name.startswith("checkpoint-") else folder.name


def add_special_tokens(tokenizer: PreTrainedTokenizerFast, parts: Parts) -> int:
    """Give the tokenizer the tokens the model was trained with; returns how many rows they need.

    A token is added when config.json says so, or when the embedding has exactly the row it would take
    (`mm_use_im_patch_token` counts as true where the key is absent, as in the original).
    """
    vocabulary = tokenizer.get_vocab()
    wanted: list[str] = []
    patch_flag = parts.original.get("mm_use_im_patch_token")
    if DEFAULT_IMAGE_PATCH_TOKEN not in vocabulary and (
        patch_flag or (patch_flag is None and parts.vocab_size == len(tokenizer) + 1)
    ):
        wanted.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if parts.original.get("mm_use_im_start_end"):
        wanted += [t for t in (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN) if t not in vocabulary]
    if wanted:
        tokenizer.add_tokens(wanted, special_tokens=True)
    if len(tokenizer) > parts.vocab_size:
        missing = len(tokenizer) - parts.vocab_size
        parts.notices.append(
            f"The tokenizer has {missing} token(s) more than the embedding has rows: rows are added."
        )
    return len(tokenizer)


def context_length(config: LlavaConfig) -> int:
    """Return how many tokens the language model can take."""
    text = config.text_config
    limit = text.max_seq_len if text.model_type == "mpt" else text.max_position_embeddings
    return int(config.max_sequence_length or limit)


def _load_weights(parts: Parts, options: LoadOptions) -> tuple[LlavaForCausalLM, torch.device]:
    """Build the model, fill it and put it where it belongs; returns it and the device of its input."""
    config = parts.config()
    model = empty_model(config, attn_implementation=options.attn_implementation)
    plan = make_plan(
        model,
        parts.source,
        family=parts.tower.family,
        num_tower_layers=parts.tower.layer_of(config.mm_vision_select_layer),
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device, num_parameters=num_parameters)
    fill(plan, parts.source, model, dtype=dtype, store=store_plainly(model, lambda _: device))
    return _finish(model, dtype, device), device


def _finish(model: LlavaForCausalLM, dtype: torch.dtype, device: torch.device) -> LlavaForCausalLM:
    model.tie_weights()
    model.config.dtype = dtype
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model.eval()


def _default_attention(config: LlavaConfig) -> str:
    # MPT's ALiBi attention exists in one form only.
    return "eager" if config.text_config.model_type == "mpt" else "sdpa"


@contextmanager
def _without_initialisation() -> Iterator[None]:
    """Build modules without filling them with random numbers, which takes minutes for billions."""
    with no_init_weights():
        yield


def _generation_config(config: LlavaConfig, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Return greedy defaults with the model's own ids; sampling is the caller's to ask for."""
    text = config.text_config
    eos = text.eos_token_id if text.eos_token_id is not None else tokenizer.eos_token_id
    bos = text.bos_token_id if text.bos_token_id is not None else tokenizer.bos_token_id
    pad = text.pad_token_id if text.pad_token_id is not None else tokenizer.pad_token_id
    first_eos = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(
        eos_token_id=eos, bos_token_id=bos, pad_token_id=first_eos if pad is None else pad, do_sample=False
    )


def new_model(
    original: Mapping[str, Any], tower: Mapping[str, Any], *, image_size: int, seed: int | None = None
) -> LlavaForCausalLM:
    """Build a model with random float32 weights on the CPU, from two config.json contents.

    original: the language model's with `mm_*` keys (`model_type`, `vocab_size`, `mm_projector_type`,
    `mm_vision_select_layer`, ...). tower: the vision tower's (`model_type` "intern_vit_6b" or
    "clip_vision_model"). Raises ConfigError.
    """
    config = make_config(original, read_tower(tower, source="tower"), image_size=image_size)
    if seed is not None:
        torch.manual_seed(seed)
    model = model_class(config)._from_config(config, attn_implementation=_default_attention(config))
    embeddings = model.model.vision_tower.embeddings
    for table in (getattr(embeddings, name, None) for name in ("cls_token", "position_embeddings")):
        # The native class begins with zeros, under which a tower sees no positions at first.
        if table is not None:
            torch.nn.init.normal_(table, std=config.vision_config.initializer_range)
    return model
