"""Single weight files: safetensors by its own library, torch's `.bin` without running code of the file.

Place in the flow: `weights.WeightFiles` opens its files here, and writes each shard with `write_safetensors`.
Whatever a file does wrong becomes one WeightsError with its name. A file is mapped from the first read until
`close`; mapped pages count as memory, so `weights` keeps one file open at most.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llava.errors import FileError, WeightsError

_READABLE = frozenset(
    # The codes of the dtypes that a model's dtype can be made of: no packed, scale-only or complex ones.
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL")
)
_UNPICKLING = (
    # What torch and its restricted unpickler raise for input that is no weights file.
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
)


class Entry(NamedTuple):
    """What is known of a tensor without reading it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    num_bytes: int


class SafetensorsFile:
    """The tensors of one safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: Any = None
        self.entries = self._entries(self._open())

    def read(self, key: str) -> torch.Tensor:
        """Return a tensor that is mapped from the file; raises WeightsError when the file has changed."""
        if self._opened is None:
            self._opened = self._open()
        tensor = self._tensor(self._opened, key)
        # The format allows tensors at any byte.
        return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor

    def close(self) -> None:
        """Let go of the mapping; tensors that are still in use keep it."""
        self._opened = None

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise broken(self.path, str(error)) from error
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _entries(self, opened: Any) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for key in opened.keys():
            code = opened.get_slice(key).get_dtype()
            if code not in _READABLE:
                raise broken(self.path, f"{key} has the unknown dtype {code}")
            entries[key] = _entry(self._tensor(opened, key))
        return entries

    def _tensor(self, opened: Any, key: str) -> torch.Tensor:
        try:
            tensor: torch.Tensor = opened.get_tensor(key)
        except SafetensorError as error:
            raise broken(self.path, str(error)) from error
        return tensor


class TorchFile:
    """The tensors of one `.bin`, mapped on the first read and until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, torch.Tensor] | None = None
        self.entries = {key: _entry(tensor) for key, tensor in _load_torch(path).items()}

    def read(self, key: str) -> torch.Tensor:
        if self._tensors is None:
            self._tensors = _load_torch(self.path)
        return self._tensors[key]

    def close(self) -> None:
        self._tensors = None


WeightFile = SafetensorsFile | TorchFile


def open_file(path: Path) -> WeightFile:
    """Open a file by its suffix; raises WeightsError naming it when it is corrupt or cannot be read."""
    try:
        return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to `path`; those on other devices and views of each other are written as what they hold.

    Raises WeightsError for tensors that the format cannot hold, FileError when the file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    whole: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise WeightsError(
                f"{name} is a {tensor.layout} tensor of {tensor.dtype}, which {path.name} cannot hold"
            )
        storage = tensor.untyped_storage().data_ptr()
        contiguous = tensor.detach().contiguous()
        # safetensors refuses tensors that share memory.
        whole[name] = contiguous.clone() if storage in seen else contiguous
        seen.add(storage)
    try:
        save_file(whole, path, metadata=dict(metadata))
    except SafetensorError as error:
        raise FileError(
            f"{path} cannot be written: {error}", remedy="Check the path, its permissions and the space left."
        ) from error
    # safetensors 0.8 leaves the file to its owner alone, whatever the umask says.
    path.chmod(mode)


def broken(path: Path, cause: str) -> WeightsError:
    """Return the error for a file that is cut, corrupt or not what its name says."""
    return WeightsError(
        f"{path} is not a whole weights file: {cause}", remedy="Download or copy the file again."
    )


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f"{path} cannot be read: {error.strerror or error}")


def _entry(tensor: torch.Tensor) -> Entry:
    return Entry(tensor.dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size())


def _load_torch(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.bin`, mapped where the format allows; never runs code of the file."""
    try:
        is_zip = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            # About pickle protocols; what cannot be read raises.
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except _UNPICKLING as error:
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise WeightsError(
                f"{path} holds more than tensors; code in it was not run",
                remedy="Use a file from a source that you trust, best one in safetensors.",
            ) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise broken(path, reason) from error
    if not isinstance(content, Mapping):
        raise broken(path, f"it holds a {type(content).__name__} and no tensors by name")
    tensors: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise broken(path, f"its entry {key!r} is a {type(value).__name__} and no tensor")
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise broken(path, f"{key} is a {value.layout} tensor on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise broken(path, f"{key} has a shape of more bytes than it has data")
        tensors[key] = value.detach()
    return tensors
