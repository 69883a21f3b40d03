"""Write a checkpoint of any kind as one whole model in our own format: adapters merged, tower inside.

Used by `consolidate` and `scripts/merge_lora_weights.py`. The stored dtype is the base's, unless asked for.
"""

from __future__ import annotations

from pathlib import Path

import torch

from llava.model.assembling import assemble
from llava.model.builder import LoadOptions, load_model
from llava.model.checkpoint import Checkpoint, recognise
from llava.model.device import DTYPES, resolve_dtype
from llava.model.rewriting import new_folder, rewrite
from llava.model.saving import save_checkpoint

_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")


def merge(
    path: str | Path,
    target: str | Path,
    *,
    base: str | None = None,
    template: str | None = None,
    dtype: str | None = None,
) -> torch.dtype:
    """Load `path` (with `base` under a projector or LoRA checkpoint) and write it whole to `target`.

    Needs main memory for the model once, in the stored dtype, which is returned. Raises what loading raises,
    and FileError when `target` is there; then nothing is written.
    """
    target = Path(target)
    checkpoint = recognise(path)
    stored = stored_dtype(checkpoint, base=base, dtype=dtype)
    with new_folder(target) as folder:
        loaded = load_model(
            path,
            LoadOptions(base=base, template=template, device="cpu", dtype=str(stored).removeprefix("torch.")),
        )
        save_checkpoint(
            folder,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            rules=loaded.image_processor.rules,
            template=loaded.template,
            base=base,
            parent=str(checkpoint.path),
        )
    return stored


def consolidate(
    source: str | Path, target: str | Path, *, base: str | None = None, dtype: str | None = None
) -> None:
    """Write a checkpoint's weights again as safetensors, with its config and tokenizer, to `target`.

    A whole model, language model or delta keeps its layout and is copied tensor by tensor, the tower with it;
    other kinds are merged. dtype: stored dtype, None keeps each tensor's.
    """
    checkpoint = recognise(source)
    if checkpoint.kind not in ("own", "full", "llm", "delta", "tower"):
        merge(source, target, base=base, dtype=dtype)
        return
    rewrite(
        checkpoint.weights,
        checkpoint.path,
        Path(target),
        dtype=None if dtype is None else _named(dtype),
    )


def stored_dtype(checkpoint: Checkpoint, *, base: str | None, dtype: str | None) -> torch.dtype:
    """Return the dtype asked for, else the one in which the language model's embedding is stored."""
    if dtype is not None:
        return _named(dtype)
    source = assemble(checkpoint, base=base, image_size=None).source
    stored = next((source.dtype(key) for key in source.keys() if key in _EMBEDDINGS), torch.float32)
    return stored if stored in DTYPES.values() else torch.float32


def _named(dtype: str) -> torch.dtype:
    return resolve_dtype(dtype, torch.device("cpu"), num_parameters=0)
