"""Write a checkpoint as two GGUF files for llama.cpp: the language model, and the tower with projector.

Source -> checks -> plan of names and types -> one pass over the tensors into both files
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from llava.export.gguf_file import GgufFile, import_gguf
from llava.export.gguf_model import ARCHITECTURE as MODEL_ARCHITECTURE
from llava.export.gguf_model import ModelKeys, check_model, plan_model
from llava.export.gguf_projector import ARCHITECTURE as PROJECTOR_ARCHITECTURE
from llava.export.gguf_projector import ProjectorKeys, check_projector, plan_projector
from llava.export.gguf_types import check_type
from llava.export.source import Source, open_source, source_of
from llava.files import atomic_path
from llava.model.builder import LoadedModel
from llava.processing.chat_template import llama_cpp_template


class GgufFiles(NamedTuple):
    """What was written."""

    model: Path
    projector: Path | None
    """None where the language model alone was asked for."""
    notes: tuple[str, ...] = ()
    """Tensors that are in another type than the file's, and why."""


def export_gguf(
    model: LoadedModel | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    type: str = "F16",
    base: str | None = None,
    tower: bool = True,
) -> GgufFiles:
    """Write `model-TYPE.gguf` and `mmproj-F16.gguf` into `folder` and return their paths.

    model: a loaded model, or a checkpoint, which is read tensor by tensor. type: F32, F16, Q8_0, Q5_K_M or
    Q4_K_M, of the language model; the tower keeps 16 bits (32 with F32). base: the language model under a
    projector or LoRA checkpoint. tower: False writes the language model alone, which is then all that must
    be representable, for engines that compute the features of pictures themselves.
    Raises ConfigError or TokenizerError, before a tensor is read, for a model that llama.cpp cannot compute,
    and DependencyError without gguf (or xllamacpp, for Q4_K_M and Q5_K_M).
    """
    check_type(type)
    import_gguf()
    source = source_of(model) if isinstance(model, LoadedModel) else open_source(model, base=base)
    check_source(source, tower=tower)
    return write_gguf(source, Path(folder), type, tower=tower)


def check_source(source: Source, *, tower: bool = True) -> None:
    """Raise ConfigError or TokenizerError for a model that llama.cpp cannot compute."""
    if tower:
        check_projector(source)
    check_model(source)


def write_gguf(source: Source, folder: Path, file_type: str, *, tower: bool = True) -> GgufFiles:
    """Write the files into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    is_exact = file_type == "F32"
    plan, notes = plan_model(source, file_type)
    im_start_end = source.config.mm_use_im_start_end
    template = llama_cpp_template(source.template, source.tokenizer, im_start_end=im_start_end)
    paths = [folder / f"model-{file_type}.gguf"]
    with ExitStack() as stack:
        model = stack.enter_context(atomic_path(paths[0]))
        files = [GgufFile(model, MODEL_ARCHITECTURE, plan, ModelKeys(source, file_type, template))]
        stack.callback(files[0].close)
        if tower:
            paths.append(folder / f"mmproj-{'F32' if is_exact else 'F16'}.gguf")
            projector = stack.enter_context(atomic_path(paths[1]))
            tensors = plan_projector(source, is_exact=is_exact)
            keys = ProjectorKeys(source, is_exact=is_exact)
            files.append(GgufFile(projector, PROJECTOR_ARCHITECTURE, tensors, keys))
            stack.callback(files[1].close)
        for name, tensor in source.tensors(torch.float32):
            for file in files:
                file.store(name, tensor)
    return GgufFiles(paths[0], paths[1] if tower else None, notes=tuple(notes))
