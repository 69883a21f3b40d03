"""The safetensors file format: a strict reader of headers and single tensors, and a writer that streams.

A file is a header length (8 bytes, little-endian), a JSON header of {name: {dtype, shape, data_offsets}},
and the tensors' bytes without gaps (https://github.com/huggingface/safetensors#format). Written out here
because every lie of a header is refused with the file's name before a byte of data is read, and because the
reference writer holds all of a file's tensors twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from llava.errors import WeightsError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's own limit."""
_ALIGNMENT = 8
_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Byte position in the file."""
    num_bytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file in the order in which they lie there.

    Raises WeightsError naming the file when the header is not JSON, a dtype is not known, a tensor has more
    or fewer bytes than its shape says, tensors overlap or leave gaps, or the file ends before or after them.
    """
    file_size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if file_size < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, file_size - _LENGTH_BYTES):
            raise broken(path, f"its header says {length} bytes, and the file has {file_size}")
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + length
    entries = {name: _entry(path, name, fields, data_start) for name, fields in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)))
    position = data_start
    for name, entry in ordered.items():
        if entry.start != position:
            raise broken(path, f"{name} begins at byte {entry.start} and not at {position}")
        position += entry.num_bytes
    if position != file_size:
        raise broken(path, f"its tensors end at byte {position}, and the file has {file_size}")
    return ordered


def map_file(path: Path, entries: Mapping[str, Entry]) -> torch.Tensor:
    """Return a file's bytes as uint8[size], mapped: pages are read when they are used.

    Raises WeightsError when the file has been cut since its header was read.
    """
    wanted = max((entry.start + entry.num_bytes for entry in entries.values()), default=_LENGTH_BYTES)
    if path.stat().st_size < wanted:
        raise broken(path, f"it ends before byte {wanted}")
    return torch.from_file(str(path), shared=False, size=wanted, dtype=torch.uint8)


def tensor_in(mapped: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Return a tensor of a mapped file, without a copy where it is aligned to its dtype."""
    flat = mapped[entry.start : entry.start + entry.num_bytes]
    if entry.start % entry.dtype.itemsize:
        flat = flat.clone()
    return flat.view(entry.dtype).reshape(entry.shape)


def write_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to `path`, one after the other; besides them, one tensor's bytes are held at most.

    Tensors on other devices and views of each other are written as what they hold.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES or tensor.layout is not torch.strided:
            raise WeightsError(
                f"{name} is a {tensor.layout} tensor of {tensor.dtype}, which {path.name} cannot hold"
            )
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        stream.write(text)
        for tensor in tensors.values():
            _write_bytes(stream, tensor)


def broken(path: Path, cause: str) -> WeightsError:
    """Return the error for a file that is cut, corrupt or not what its name says."""
    return WeightsError(
        f"{path} is not a whole weights file: {cause}", remedy="Download or copy the file again."
    )


def _write_bytes(stream: BinaryIO, tensor: torch.Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        stream.write(flat.view(torch.uint8).numpy().data)


def _entry(path: Path, name: str, fields: object, data_start: int) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise broken(path, f"the header's entry for {name} is not a tensor's")
    dtype, shape, offsets = _DTYPES.get(str(fields["dtype"])), fields["shape"], fields["data_offsets"]
    if dtype is None:
        raise broken(path, f"{name} has the unknown dtype {fields['dtype']!r}")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise broken(path, f"the header's entry for {name} is not a tensor's")
    num_bytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != num_bytes:
        raise broken(
            path, f"{name} has {offsets[1] - offsets[0]} bytes, and its shape {shape} needs {num_bytes}"
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], num_bytes)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands there twice")
    return fields
