"""`llava.load`: from a path, or nothing at all, to an engine that answers."""

from __future__ import annotations

import os
from typing import Literal

from llava.demo import embedded_model_path
from llava.engine.engine import ChatEngine
from llava.log import get_logger
from llava.model.builder import LoadOptions, load_model

logger = get_logger(__name__)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    base: str | None = None,
    bits: Literal[4, 8] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    image_size: int | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
) -> ChatEngine:
    """Load a checkpoint and return an engine for it; without a path, the embedded model.

    path: a checkpoint folder of any supported kind, or a hub id.
    base: the language model under a projector or LoRA checkpoint.
    bits: quantise the language model to 4 or 8 bits (bitsandbytes).
    device: "cpu", "cuda", "cuda:1", "mps"; None takes the best present.
    dtype: "float32", "bfloat16" or "float16"; None takes the device's own.
    template: prompt template, over the checkpoint's.
    image_size: input size of the vision tower in pixels, over the checkpoint's.
    device_map: "auto" spreads blocks over several GPUs.
    Raises CheckpointError and its children, ConfigError, DependencyError.
    """
    options = LoadOptions(
        base=base,
        bits=bits,
        device=device,
        dtype=dtype,
        template=template,
        image_size=image_size,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    loaded = load_model(path if path is not None else embedded_model_path(), options)
    for notice in loaded.notices:
        logger.info(notice)
    return ChatEngine(loaded)
