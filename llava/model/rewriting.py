"""Write a checkpoint again with other weights: whole or not at all, its small files copied.

Used by the weight tools (`delta`, `consolidate`), which change tensors and nothing else.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llava.errors import FileError
from llava.model.sources import TensorSource
from llava.model.weights import DEFAULT_SHARD_BYTES, write_weights

_COPIED = (".json", ".model", ".txt", ".jinja", ".md")
_NOT_COPIED = (".index.json", "trainer_state.json", "all_results.json", "train_results.json")


def rewrite(
    source: TensorSource,
    beside: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write `source` as safetensors to the new folder `target`, with the small files of `beside`.

    Config, tokenizer and the like are copied, code and weights are not. dtype: stored dtype of floating-point
    tensors; None keeps each one's. Raises FileError when `target` exists and is not empty.
    """
    with new_folder(target) as folder:
        for item in sorted(beside.iterdir()):
            if item.is_file() and item.suffix in _COPIED and not item.name.endswith(_NOT_COPIED):
                shutil.copyfile(item, folder / item.name)
        write_weights(folder, _cast(source, dtype), max_shard_bytes=max_shard_bytes)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` on success and is removed on an error."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileError(f"{target} exists already", remedy="Give a new folder, or remove what is there.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cast(source: TensorSource, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    for key in source.keys():
        tensor = source.read(key)
        yield key, tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
