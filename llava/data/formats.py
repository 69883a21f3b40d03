"""Open training data by its content: JSON list, JSONL, parquet, arrow, or a folder of the `datasets` library.

Place in the flow: the first thing that touches a data file; `records` reads single samples, `index` and
`tables` find them. Names do not decide: a list in a file called .jsonl is read as a list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llava.data.index import Cache, FileIndex, open_index
from llava.data.records import PictureFolder, Record, RecordSource, record_of
from llava.data.tables import TableSource, open_datasets_folder, open_parquet_folder, open_table
from llava.errors import DataError, FileError

_TABLES: Final = (b"PAR1", b"ARROW1")
_OTHERS: Final = {
    b"\x1f\x8b": "packed with gzip",
    b"PK\x03\x04": "a ZIP archive",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_FORMATS: Final = "Give a JSON list, JSONL, parquet, or a folder of parquet or of `datasets.save_to_disk`."


class JsonSource:
    """Samples of a JSON list or a JSONL file, read one by one from their place in the file."""

    def __init__(self, path: Path, index: FileIndex, *, name: str, folder: PictureFolder) -> None:
        self.path = path
        self.name = name
        self.fingerprint = index.sha256
        self._index = index
        self._folder = folder
        self._handle: int | None = None

    def __len__(self) -> int:
        return self._index.num_samples

    def __getitem__(self, index: int) -> Record:
        return record_of(
            self.raw(index),
            source=self.name,
            where=self.where(index),
            number=index + 1,
            folder=self._folder,
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}

    def where(self, index: int) -> str:
        """Say "x.jsonl line 12" or "x.json item 3"."""
        if self._index.layout == "list":
            return f"{self.path.name} item {index + 1}"
        return f"{self.path.name} line {self._index.line(index)}"

    def raw(self, index: int) -> object:
        """Parse one sample; raises DataError when it is no JSON, IndexError when there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples; there is no number {index}")
        begin, end = self._index.span(index)
        data = self._read(begin, end - begin)
        if len(data) < end - begin:
            raise FileError(f"{self.path} was shortened while it was in use", remedy="Start again.")
        if self._index.layout == "list":
            data = data.rstrip(b" \t\r\n").removesuffix(b",")
        try:
            return json.loads(data.decode("utf-8"))
        except json.JSONDecodeError as error:
            place = f"column {error.colno}" if error.lineno == 1 else f"its line {error.lineno}"
            raise DataError(f"not JSON: {error.msg} ({place})", where=self.where(index)) from error
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error.reason}", where=self.where(index)) from error
        except RecursionError as error:
            raise DataError("the JSON is nested too deeply", where=self.where(index)) from error

    def _read(self, begin: int, size: int) -> bytes:
        """Read at a place without moving any: a process made by a fork shares its parent's file."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        data = b""
        while len(data) < size and (piece := os.pread(self._handle, size - len(data), begin + len(data))):
            data += piece
        return data

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


def open_source(
    path: str | os.PathLike[str],
    *,
    image_folder: str | os.PathLike[str] | None = None,
    name: str | None = None,
    cache_folder: Path | None = None,
) -> RecordSource:
    """Open a file or folder of samples.

    image_folder: where relative picture paths begin; no path may lead out of it. None: they begin at the
        data's own folder, and may lead anywhere. "" is the current folder, as in the original's meta files.
    name: what reports call it; None: the file's stem. cache_folder: None: the user's cache folder.
    Raises FileError for what is missing, empty or of another format, DependencyError for a table without
    pyarrow.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path} does not exist", remedy="Check the path of the data.")
    cache = Cache() if cache_folder is None else Cache(cache_folder)
    folder = _picture_folder(path, image_folder)
    name = name if name is not None else path.stem
    if path.is_dir():
        return _open_folder(path)(path, name=name, folder=folder, cache=cache)
    with path.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(_TABLES):
        return open_table(path, name=name, folder=folder, cache=cache)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise FileError(f"{path} is {what}", remedy=f"Unpack or convert it. {_FORMATS}")
    return JsonSource(path, open_index(path, cache), name=name, folder=folder)


def _picture_folder(path: Path, image_folder: str | os.PathLike[str] | None) -> PictureFolder:
    if image_folder is None:
        own = path if path.is_dir() else path.parent
        return PictureFolder(os.path.abspath(own), is_limit=False)
    text = os.fspath(image_folder)
    if text and not os.path.isdir(text):
        raise FileError(f"the picture folder {text} does not exist", remedy="Check the path.")
    return PictureFolder(os.path.abspath(text), is_limit=bool(text))


def _open_folder(path: Path) -> Callable[..., TableSource]:
    """Say by its files how a folder is read."""
    if any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        return open_datasets_folder
    if any(path.rglob("*.parquet")):
        return open_parquet_folder
    raise FileError(f"{path} holds neither parquet files nor a saved dataset", remedy=_FORMATS)
