"""Samples in parquet files and in folders of the `datasets` library, by pyarrow alone.

Place in the flow: beside `index`. Arrow files are mapped into memory and a row is read where it stands.
Parquet has no random access (a row group is decoded as a whole), so it is copied once, group by group, into
an arrow file in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from llava.data.index import Cache, file_digest
from llava.data.records import PictureFolder, Record, record_of
from llava.errors import DataError, DependencyError, FileError
from llava.files import atomic_path, read_json
from llava.log import get_logger

if TYPE_CHECKING:
    import pyarrow as pa

_logger = get_logger(__name__)

_ROWS_PER_BATCH: Final = 256
# As the hub names the files of a split: train-00000-of-00012.parquet, validation.parquet.
_SPLIT: Final = re.compile(r"(train|validation|valid|val|dev|test)(?=[-_.]|$)")


class TableSource:
    """Rows of one or several arrow files; each process maps the files for itself."""

    def __init__(self, files: Sequence[Path], *, name: str, fingerprint: str, folder: PictureFolder) -> None:
        """Map the files once to count the rows.

        Raises DependencyError without pyarrow, FileError for a file that is no arrow file or holds no rows.
        """
        self.name = name
        self.fingerprint = fingerprint
        self._files = tuple(files)
        self._folder = folder
        self._mapped: tuple[int, list[pa.RecordBatch]] | None = None
        self._ends = np.cumsum([batch.num_rows for batch in self._batches()], dtype=np.int64)
        if not len(self):
            raise FileError(f"{name} holds no rows")

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def __getitem__(self, index: int) -> Record:
        return record_of(
            self.raw(index),
            source=self.name,
            where=self.where(index),
            number=index + 1,
            folder=self._folder,
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}

    def where(self, index: int) -> str:
        """Say "name row 12"."""
        return f"{self.name} row {index + 1}"

    def raw(self, index: int) -> object:
        """Return one row as a mapping of column to value; raises IndexError when there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows; there is no number {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches()[number]
        begin = int(self._ends[number]) - batch.num_rows
        row = batch.slice(index - begin, 1)
        try:
            return {column: row.column(place)[0].as_py() for place, column in enumerate(batch.schema.names)}
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error.reason}", where=self.where(index)) from error

    def _batches(self) -> list[pa.RecordBatch]:
        """Return all batches; their data stays on disk until a row is read."""
        if self._mapped is None or self._mapped[0] != os.getpid():
            batches = [batch for file in self._files for batch in _map_file(file)]
            self._mapped = (os.getpid(), batches)
        return self._mapped[1]


def open_table(path: Path, *, name: str, folder: PictureFolder, cache: Cache) -> TableSource:
    """Open one parquet or arrow file."""
    with path.open("rb") as stream:
        is_parquet = stream.read(4) == b"PAR1"
    file = _arrow_copy(path, cache) if is_parquet else path
    return TableSource([file], name=name, fingerprint=file_digest(path, cache), folder=folder)


def open_parquet_folder(path: Path, *, name: str, folder: PictureFolder, cache: Cache) -> TableSource:
    """Open all parquet files below a folder, in the order of their names; of several splits, the first."""
    files = _training_split(path, sorted(path.rglob("*.parquet")))
    copies = [_arrow_copy(file, cache) for file in files]
    return TableSource(copies, name=name, fingerprint=_digest(files, cache), folder=folder)


def open_datasets_folder(path: Path, *, name: str, folder: PictureFolder, cache: Cache) -> TableSource:
    """Open what `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises FileError for a folder without the files that it lists, or with a selection of rows beside them.
    """
    if (path / "dataset_dict.json").exists():
        splits = _names(read_json(path / "dataset_dict.json"), "splits", path)
        split = _choose(splits, path)
        return open_datasets_folder(path / split, name=name, folder=folder, cache=cache)
    state = read_json(path / "state.json")
    if isinstance(state, dict) and state.get("_indices_data_files"):
        raise FileError(
            f"{path} keeps a selection of rows in a file of its own",
            remedy="Call flatten_indices() on the dataset and save it again.",
        )
    files = [path / file for file in _names(state, "_data_files", path)]
    for file in files:
        if not file.exists():
            raise FileError(f"{file}, which {path / 'state.json'} lists, does not exist")
    return TableSource(files, name=name, fingerprint=_digest(files, cache), folder=folder)


def _names(listing: object, key: str, path: Path) -> list[str]:
    """Read a list of names, or of `{"filename": name}`, out of a dataset's JSON."""
    entries = listing.get(key) if isinstance(listing, dict) else None
    names = [one.get("filename") if isinstance(one, dict) else one for one in entries or []]
    if not names or not all(isinstance(one, str) for one in names):
        raise FileError(f"{path} lists no `{key}`", remedy="Save the dataset again.")
    return [str(one) for one in names]


def _choose(splits: Sequence[str], path: Path) -> str:
    """Return the split to train on, and say which are left out."""
    if len(splits) == 1:
        return splits[0]
    if "train" not in splits:
        raise FileError(
            f"{path} holds the splits {', '.join(splits)}, and none is called train",
            remedy="Give the path of one split.",
        )
    others = ", ".join(split for split in splits if split != "train")
    _logger.warning("%s: split train is used; left out: %s", path, others)
    return "train"


def _training_split(path: Path, files: Sequence[Path]) -> list[Path]:
    """Keep the files of the split to train on, where names or folders say which split a file belongs to."""
    of_file = {file: _split_of(file.relative_to(path)) for file in files}
    splits = sorted({split for split in of_file.values() if split})
    if len(splits) < 2:
        return list(files)
    chosen = _choose(splits, path)
    return [file for file in files if of_file[file] in (chosen, "")]


def _split_of(file: Path) -> str:
    for part in (file.name, *reversed(file.parts[:-1])):
        if found := _SPLIT.match(part):
            return found.group(1)
    return ""


def _digest(files: Sequence[Path], cache: Cache) -> str:
    """Return one sha256 over those of several files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(bytes.fromhex(file_digest(file, cache)))
    return whole.hexdigest()


def _require_pyarrow(purpose: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DependencyError.of_extra("pyarrow", "train", purpose) from None


def _map_file(path: Path) -> list[pa.RecordBatch]:
    """Map an arrow file of either kind (`datasets` writes streams) and return its batches."""
    _require_pyarrow(f"reading {path.name}")
    import pyarrow as pa

    try:
        source = pa.memory_map(os.fspath(path))
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if not is_file:
            return list(pa.ipc.open_stream(source))
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise FileError(f"{path} is no whole arrow file: {error}") from error


def _arrow_copy(path: Path, cache: Cache) -> Path:
    """Return the copy of a parquet file with random access, made now unless it is there."""
    _require_pyarrow(f"reading {path.name}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = file_digest(path, cache)
    target = cache.folder / f"{digest[:40]}.arrow"
    if target.exists():
        return target
    try:
        table = pq.ParquetFile(path)
        with (
            atomic_path(target) as temporary,
            pa.OSFile(os.fspath(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema_arrow) as writer,
        ):
            for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH):
                writer.write_batch(batch)
    except pa.ArrowInvalid as error:
        raise FileError(f"{path} is no whole parquet file: {error}") from error
    return target
