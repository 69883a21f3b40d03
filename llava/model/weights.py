"""Weight files: read lazily and strictly, one tensor at a time; written as sharded safetensors.

Place in the flow: the first thing that touches a checkpoint's weights. `WeightFiles` is a
`sources.TensorSource` over single files, shards with or without an index, projector files and adapters, in
safetensors or in torch's `.bin`. A `.bin` is a pickle: it is read with `weights_only`, so that code planted
in it does not run (the original ran it); `weight_file` does the reading and writing of single files. At most
one file is mapped at a time, so that reading in the order of `keys()` needs one shard of memory at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from llava.errors import FileError, WeightsError
from llava.files import atomic_path, read_json, write_json
from llava.model.weight_file import WeightFile, broken, open_file, write_safetensors

DEFAULT_SHARD_BYTES = 5_000_000_000
_SAFETENSORS = ".safetensors"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")


class WeightFiles:
    """The tensors of one or several weight files, by name; only `read` touches their data."""

    def __init__(self, paths: Sequence[Path], *, index: Mapping[str, str] | None = None) -> None:
        """Read the headers of `paths`; `index` maps a name to the file name it must be in.

        Raises WeightsError for a corrupt file, a name in two files, or an index that does not agree.
        """
        self._files = [open_file(path) for path in paths]
        self._homes: dict[str, WeightFile] = {}
        self._last: WeightFile | None = None
        for file in self._files:
            for key in file.entries:
                self._add(key, file, index or {})
        for key, file_name in (index or {}).items():
            home = self._homes.get(key)
            if home is None or home.path.name != file_name:
                raise WeightsError(
                    f"{key} is not in {file_name}, where the index looks for it",
                    remedy="Download the weights again: index and files are of different versions.",
                )

    @classmethod
    def open(cls, folder: Path, stem: str = "model") -> WeightFiles:
        """Open the files of a folder that belong to `stem`: model, adapter_model, mm_projector, ...

        safetensors come before `.bin` (for `model`: pytorch_model*.bin), an index before what lies there.
        Raises WeightsError when there is none, or a shard is missing.
        """
        bin_stem = "pytorch_model" if stem == "model" else stem
        for name, suffix in ((stem, _SAFETENSORS), (bin_stem, ".bin")):
            found = cls._open_kind(folder, name, suffix)
            if found is not None:
                return found
        raise WeightsError(
            f"{folder} has no weight files of the name {stem}", remedy="Download the weight files too."
        )

    @classmethod
    def open_files(cls, paths: Iterable[Path | str]) -> WeightFiles:
        """Open these files as one source; raises FileError when one is missing."""
        given = [Path(path) for path in paths]
        for path in given:
            if not path.is_file():
                raise FileError(f"{path} does not exist", remedy="Check the path.")
        return cls(given)

    @classmethod
    def _open_kind(cls, folder: Path, stem: str, suffix: str) -> WeightFiles | None:
        index_path = folder / f"{stem}{suffix}.index.json"
        if index_path.is_file():
            index = _read_index(index_path)
            return cls([_shard(folder, name) for name in dict.fromkeys(index.values())], index=index)
        if (folder / f"{stem}{suffix}").is_file():
            return cls([folder / f"{stem}{suffix}"])
        shards = _shards_without_index(folder, stem, suffix)
        return cls(shards) if shards else None

    def keys(self) -> Iterable[str]:
        """Return the names, file by file."""
        return self._homes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._homes[key].entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Return a tensor's dtype without reading it."""
        return self._homes[key].entries[key].dtype

    def read(self, key: str) -> torch.Tensor:
        """Return a tensor on the CPU, to be read and not written: it is mapped from the file.

        Mapped and not read into memory of its own: small buffers that come and go between the model's tensors
        leave holes in the heap, which cost half of the model's size (measured by bench/load_memory.py).
        """
        home = self._homes[key]
        if self._last is not None and self._last is not home:
            self._last.close()
        self._last = home
        return home.read(key)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [file.path for file in self._files]

    @property
    def total_bytes(self) -> int:
        """Size of all tensors in their stored dtypes."""
        return sum(home.entries[key].num_bytes for key, home in self._homes.items())

    def _add(self, key: str, file: WeightFile, index: Mapping[str, str]) -> None:
        other = self._homes.get(key)
        if other is None or index.get(key) == file.path.name:
            self._homes[key] = file
        elif index.get(key) != other.path.name:
            raise WeightsError(
                f"{key} is in {other.path.name} and in {file.path.name}",
                remedy="Keep the files of one checkpoint in the folder.",
            )


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write tensors as model.safetensors, or as shards with an index where they exceed `max_shard_bytes`.

    At most one shard is held (two with versions of safetensors that copy what they write), so a lazy iterable
    is written in bounded memory. Tied tensors are written under each of their names. Files appear whole and
    under their names only when all are written; weight files of an earlier checkpoint in the folder are then
    removed. Returns the files written, shards first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", **(metadata or {})}
    parts: list[Path] = []
    names: list[list[str]] = []
    total_bytes = 0
    try:
        for shard in _shards(tensors, max_shard_bytes):
            parts.append(folder / f".model-{len(parts) + 1:05d}.part")
            names.append(list(shard))
            total_bytes += sum(tensor.numel() * tensor.element_size() for tensor in shard.values())
            write_safetensors(parts[-1], shard, metadata)
            shard.clear()
        _check_unique(names)
        return _publish(folder, parts, names, total_bytes)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_torch_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a `.bin` of plain tensors, for programs that read nothing else (stage 2 of the original)."""
    with atomic_path(path) as temporary:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, temporary)


def _shards(
    tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int
) -> Iterable[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    num_bytes = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if shard and num_bytes + size > max_shard_bytes:
            yield shard
            shard, num_bytes = {}, 0
        if name in shard:
            raise WeightsError(f"{name} is to be written twice")
        shard[name] = tensor
        num_bytes += size
    yield shard


def _check_unique(names: list[list[str]]) -> None:
    seen: set[str] = set()
    for name in (name for shard in names for name in shard):
        if name in seen:
            raise WeightsError(f"{name} is to be written twice")
        seen.add(name)


def _publish(folder: Path, parts: list[Path], names: list[list[str]], total_bytes: int) -> list[Path]:
    """Give the finished parts their names, write the index, and remove what an earlier save left."""
    if len(parts) == 1:
        finals = [folder / "model.safetensors"]
    else:
        finals = [folder / f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    written = list(finals)
    for part, final in zip(parts, finals, strict=True):
        part.replace(final)
    if len(finals) > 1:
        weight_map = {name: final.name for final, shard in zip(finals, names, strict=True) for name in shard}
        written.append(folder / "model.safetensors.index.json")
        write_json(written[-1], {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    for item in folder.iterdir():
        is_ours = item.name in ("model.safetensors", "model.safetensors.index.json")
        match = _SHARD.fullmatch(item.name)
        is_shard = match is not None and match["stem"] == "model" and match["suffix"] == _SAFETENSORS
        if (is_ours or is_shard) and item not in written:
            item.unlink()
    return written


def _read_index(path: Path) -> dict[str, str]:
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise broken(path, "it has no weight_map")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise broken(path, f"{key} is in {name!r}, which is no file name")
    return dict(weight_map)


def _shard(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"{path}, a shard of the weights, is missing", remedy="Download this file.")
    return path


def _shards_without_index(folder: Path, stem: str, suffix: str) -> list[Path]:
    found = [
        match
        for match in (_SHARD.fullmatch(item.name) for item in folder.iterdir())
        if match is not None and match["stem"] == stem and match["suffix"] == suffix
    ]
    if not found:
        return []
    counts = {match["count"] for match in found}
    if len(counts) > 1:
        raise WeightsError(
            f"{folder} has shards of several checkpoints: of {' and of '.join(sorted(counts))}",
            remedy="Keep the files of one checkpoint in the folder.",
        )
    count = counts.pop()
    return [_shard(folder, f"{stem}-{number:05d}-of-{count}{suffix}") for number in range(1, int(count) + 1)]
