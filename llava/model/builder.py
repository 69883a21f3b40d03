"""Load a checkpoint of any kind into a model that answers.

    recognise -> assemble (parts, nothing read) -> empty model -> fill, shard by shard -> LoadedModel

`load_pretrained_model` is the original's entry point of the same name, for outside code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import init_empty_weights
from transformers import MODEL_MAPPING, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from llava.errors import ConfigError, DependencyError
from llava.log import get_logger
from llava.model.assembling import Parts, assemble
from llava.model.checkpoint import Checkpoint, recognise
from llava.model.config import LlavaConfig, make_config, text_config
from llava.model.conventions import (
    add_special_tokens,
    choose_template,
    context_length,
    generation_config,
)
from llava.model.device import SMALL_MODEL, resolve_device, resolve_dtype
from llava.model.filling import Store, fill, make_plan, store_plainly
from llava.model.modeling import LlavaForCausalLM, LlavaLlamaForCausalLM, LlavaMptForCausalLM
from llava.model.towers import read_tower
from llava.processing.pixels import ImageProcessor
from llava.processing.tokenizer import load_tokenizer
from llava.templates import ChatTemplate, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = get_logger(__name__)

_EMBEDDING = "model.language_model.embed_tokens.weight"
"""Where input ids go first."""
_CONSTRUCTION_ERRORS = (
    # What transformers' and torch's constructors raise for values of a config that make no model.
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
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
    model.generation_config = generation_config(model.config, tokenizer)
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
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = _build(config, attn_implementation)
    model.tie_weights()
    return model.eval()


def _build(config: LlavaConfig, attn_implementation: str | None) -> LlavaForCausalLM:
    """Construct the model; raises ConfigError for a language model that the native class does not take."""
    text_type = config.text_config.model_type
    attention = attn_implementation or _default_attention(config)
    try:
        return model_class(config)._from_config(config, attn_implementation=attention)
    except ImportError as error:
        raise DependencyError(
            f"attn_implementation is {attention!r}, and its package is not installed",
            remedy="Install it, or use sdpa.",
        ) from error
    except _CONSTRUCTION_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise ConfigError(
            f"No {text_type} model can be built from config.json: {type(error).__name__}: {reason}",
            remedy="Check its values. Tried: llama, mistral, qwen2, qwen3, mpt, phi3, gemma2, gpt_neox.",
        ) from error


def model_class(config: LlavaConfig) -> type[LlavaForCausalLM]:
    """Return the class with the original's name for the language model of `config`."""
    named = {"llama": LlavaLlamaForCausalLM, "mpt": LlavaMptForCausalLM}
    return named.get(config.text_config.model_type, LlavaForCausalLM)


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
    device = resolve_device(options.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = resolve_dtype(options.dtype, device, num_parameters=num_parameters)
    where = _placement(model, options, dtype, device)
    device = where(_EMBEDDING)
    store = store_plainly(model, where)
    if options.bits is not None:
        from llava.model import quantize

        quantize.prepare(model, options.bits, compute_dtype=dtype)
        store = _quantised_first(model, where, store)
    fill(plan, parts.source, dtype=dtype, store=store)
    return _finish(model, options, dtype, device), device


def _placement(
    model: LlavaForCausalLM, options: LoadOptions, dtype: torch.dtype, device: torch.device
) -> Callable[[str], torch.device]:
    """Return where each parameter goes: one device, or the device map's."""
    if options.device_map is None:
        return lambda _: device
    from llava.model import placement

    device_map = placement.resolve(model, options.device_map, dtype, options.bits)
    model.hf_device_map = device_map
    return lambda name: placement.device_of(device_map, name)


def _quantised_first(model: LlavaForCausalLM, where: Callable[[str], torch.device], store: Store) -> Store:
    """Return a Store that lets `quantize` take what it has prepared a place for."""
    from llava.model import quantize

    def store_either(name: str, tensor: torch.Tensor) -> None:
        if not quantize.store(model, name, tensor, where(name)):
            store(name, tensor)

    return store_either


def _finish(
    model: LlavaForCausalLM, options: LoadOptions, dtype: torch.dtype, device: torch.device
) -> LlavaForCausalLM:
    model.tie_weights()
    model.config.dtype = dtype
    if options.device_map is not None:
        from llava.model import placement

        placement.dispatch(model, model.hf_device_map)
        return model.eval()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model.eval()


def _default_attention(config: LlavaConfig) -> str:
    """Return "sdpa" where the language model has it (MPT's ALiBi has not)."""
    text_class = MODEL_MAPPING.get(type(config.text_config), None)
    return "sdpa" if text_class is not None and text_class._supports_sdpa else "eager"


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
    model = _build(config, None)
    if config.vision_config.model_type == "internvl_vision":
        # The native class begins with zeros, under which a tower sees no positions at first.
        embeddings = model.model.vision_tower.embeddings
        for table in (embeddings.cls_token, embeddings.position_embeddings):
            torch.nn.init.normal_(table, std=config.vision_config.initializer_range)
    return model


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict[str, Any] | None = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedTokenizerFast, Any, ImageProcessor | None, int]:
    """Return (tokenizer, model, image_processor, context_len) as the original's function of this name.

    What the folder is decides what is loaded; `model_name` has no effect. Without a GPU, "cuda" becomes the
    CPU, with a warning. A language model alone is loaded as such, with None for the image processor.
    `torch_dtype` (or `dtype`) and `attn_implementation` are taken from kwargs; others are logged.
    Raises what `load_model` raises.
    """
    del model_name
    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("There is no NVIDIA GPU that torch can use: %s is loaded on the CPU", model_path)
        device = "cpu"
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    attention = kwargs.pop("attn_implementation", "flash_attention_2" if use_flash_attn else None)
    for name in kwargs:
        logger.info("load_pretrained_model: %s has no effect here", name)
    spreads = isinstance(device_map, dict) or (device_map == "auto" and torch.cuda.device_count() > 1)
    options = LoadOptions(
        base=model_base,
        bits=8 if load_8bit else 4 if load_4bit else None,
        device=device,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        device_map=device_map if spreads and device.startswith("cuda") else None,
        attn_implementation=attention,
    )
    checkpoint = recognise(model_path)
    if checkpoint.kind == "llm" and model_base is None:
        return _load_language_model(checkpoint, options)
    loaded = load_model(model_path, options)
    return loaded.tokenizer, loaded.model, loaded.image_processor, loaded.context_length


def _load_language_model(
    checkpoint: Checkpoint, options: LoadOptions
) -> tuple[PreTrainedTokenizerFast, Any, None, int]:
    """Load a language model alone with transformers; remote code is never run."""
    device = resolve_device(options.device)
    config = text_config(checkpoint.config, str(checkpoint.path / "config.json"))
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        config=config,
        dtype=resolve_dtype(options.dtype, device, num_parameters=SMALL_MODEL + 1),
        trust_remote_code=False,
    ).to(device)
    limit = config.max_seq_len if config.model_type == "mpt" else config.max_position_embeddings
    return load_tokenizer(checkpoint.path), model.eval(), None, int(limit)
