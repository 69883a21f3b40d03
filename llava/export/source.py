"""What is exported: a checkpoint on disk of which only headers are read, or a loaded model.

First step of every exporter. A checkpoint is matched with its configuration as `model.builder` does it, on
the meta device; its tensors are read later, one at a time, so that the peak of memory is one tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from llava.errors import ConfigError
from llava.model.assembling import Parts, assemble
from llava.model.builder import LoadedModel, empty_model
from llava.model.checkpoint import Checkpoint, recognise
from llava.model.config import LlavaConfig
from llava.model.conventions import add_special_tokens, choose_template
from llava.model.filling import POSITION_TABLES, make_plan, parameter_names, read_parameters
from llava.model.saving import is_adapter
from llava.processing.image_rules import ImageRules
from llava.processing.tokenizer import load_tokenizer
from llava.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")


@dataclass(frozen=True)
class Source:
    """A model whose tensors can be read one by one under the names they have in memory."""

    checkpoint: Checkpoint
    config: LlavaConfig
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    rules: ImageRules
    shapes: Mapping[str, tuple[int, ...]]
    """Parameter -> shape, in the order in which they are read."""
    tensors: Callable[[torch.dtype], Iterator[tuple[str, torch.Tensor]]]
    """Given a dtype, yields (parameter, its value on the CPU) one at a time, in the order of `shapes`."""
    stored_dtype: torch.dtype
    """In which the checkpoint keeps its token embedding."""
    dtypes: frozenset[torch.dtype]
    """Every dtype among its tensors."""
    is_resized: bool = False
    """Whether the tower's position table is resampled, which gives values that no file holds."""
    has_tower_inside: bool = True
    """Whether the vision tower's weights are among the checkpoint's own."""
    tokenizer_model: Path | None = None
    """The sentencepiece file, where the checkpoint has one."""
    notices: tuple[str, ...] = field(default=())

    def is_lossless(self, dtype: torch.dtype) -> bool:
        """Whether weights stored in `dtype` have exactly the values of the source."""
        return dtype == torch.float32 or (self.dtypes <= {dtype} and not self.is_resized)


def open_source(
    path: str | os.PathLike[str], *, base: str | None = None, template: str | None = None
) -> Source:
    """Open the checkpoint `path` (with `base` under a projector or LoRA) for export.

    Raises what loading raises; no tensor is read.
    """
    checkpoint = recognise(path)
    parts = assemble(checkpoint, base=base, image_size=None)
    tokenizer = load_tokenizer(parts.tokenizer_folder)
    parts.vocab_size = max(parts.vocab_size, add_special_tokens(tokenizer, parts))
    model_file = parts.tokenizer_folder / "tokenizer.model"
    chosen, _ = choose_template(parts, template)
    config = parts.config()
    plan = make_plan(
        empty_model(config),
        parts.source,
        family=parts.tower.family,
        num_tower_layers=parts.tower.layer_of(config.mm_vision_select_layer),
    )

    def tensors(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        parameters = read_parameters(plan, parts.source, dtype=dtype)
        return iter(tqdm(parameters, total=len(plan.shapes), desc="tensors", disable=None, leave=False))

    return Source(
        checkpoint=checkpoint,
        config=config,
        tokenizer=tokenizer,
        template=chosen,
        rules=parts.rules,
        shapes={name: plan.shapes[name] for name in parameter_names(plan)},
        tensors=tensors,
        stored_dtype=_stored_dtype(parts),
        dtypes=frozenset(parts.source.dtype(key) for key, _ in plan.steps),
        is_resized=any(
            parts.source.shape(key)[-2] != plan.shapes[target.name][-2]
            for key, targets in plan.steps
            for target in targets
            if target.name in POSITION_TABLES
        ),
        has_tower_inside=checkpoint.has_tower,
        tokenizer_model=model_file if model_file.is_file() else None,
        notices=tuple(parts.notices),
    )


def source_of(loaded: LoadedModel) -> Source:
    """Return a loaded model as a source; raises ConfigError for one that is quantised."""
    parameters = {name: p for name, p in loaded.model.named_parameters() if not is_adapter(name)}
    quantised = [name for name, parameter in parameters.items() if not parameter.is_floating_point()]
    if quantised:
        raise ConfigError(
            f"the model is loaded in few bits ({quantised[0]} and {len(quantised) - 1} others)",
            remedy="Export it from its folder, or load it without bits.",
        )

    def tensors(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in parameters.items():
            yield name, parameter.detach().to(device="cpu", dtype=dtype)

    return Source(
        checkpoint=loaded.checkpoint,
        config=loaded.model.config,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        rules=loaded.image_processor.rules,
        shapes={name: tuple(parameter.shape) for name, parameter in parameters.items()},
        tensors=tensors,
        stored_dtype=next(iter(parameters.values())).dtype,
        dtypes=frozenset(parameter.dtype for parameter in parameters.values()),
        notices=loaded.notices,
    )


def _stored_dtype(parts: Parts) -> torch.dtype:
    keys = (key for key in parts.source.keys() if key in _EMBEDDINGS)
    return next((parts.source.dtype(key) for key in keys), torch.float32)
