"""What the user named -> the data files to look at, and what is wrong with a mixture's meta file.

First step of the doctor, with `reading`. Tables (parquet, arrow, `datasets` folders) are opened by the
trainer's reader: they have types, so nothing in them can break the reading.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llava.command import nearest
from llava.data.doctor.reading import Fault, Item, read_items, whole_object
from llava.data.formats import open_source
from llava.data.records import PictureFolder
from llava.errors import FileError

_TABLE_SUFFIXES: Final = (".parquet", ".arrow")
_ENTRY_KEYS: Final = ("root", "annotation", "data_augment", "repeat_time", "weight")

MixtureFault = Callable[[str, str, str], None]
"""Told (code, entry, detail)."""


@dataclass(frozen=True)
class DataFile:
    """One file or folder of samples."""

    name: str
    """What the report calls it."""
    path: Path
    folder: Path
    """Where relative picture names begin; absolute."""
    is_limit: bool
    """Whether pictures must lie in `folder`."""
    repeat: float = 1.0

    @property
    def pictures(self) -> PictureFolder:
        """The same as the trainer's reader takes it."""
        return PictureFolder(str(self.folder), is_limit=self.is_limit)

    @property
    def is_table(self) -> bool:
        """Whether it is parquet, arrow or a folder."""
        return self.path.is_dir() or self.path.suffix.lower() in _TABLE_SUFFIXES

    def items(self, fault: Fault) -> Iterator[Item]:
        """Yield the samples; `fault` is told of what breaks the file."""
        if not self.is_table:
            yield from read_items(self.path, fault)
            return
        source = open_source(self.path, image_folder=self.folder, name=self.name)
        for index in range(len(source)):
            row = source.raw(index)
            if isinstance(row, Mapping):
                # A column that is absent in this row is null.
                row = {key: value for key, value in row.items() if value is not None}
            yield Item(index + 1, row)


def is_mixture(path: Path) -> bool:
    """Tell whether a file is the meta file of a mixture: an object of entries, not a sample."""
    if path.is_dir() or path.suffix.lower() in (*_TABLE_SUFFIXES, ".jsonl"):
        return False
    value = whole_object(path)
    if not value or "conversations" in value or "messages" in value:
        return False
    return any(isinstance(entry, dict) and set(entry) & set(_ENTRY_KEYS) for entry in value.values())


def data_files(data: str, image_folder: str | None, fault: MixtureFault) -> list[DataFile]:
    """Return the files behind `data`: a file, several with commas between them, or a mixture.

    Raises FileError when a file that the user named does not exist.
    """
    several = [data] if os.path.exists(data) else [part.strip() for part in data.split(",")]
    files: list[DataFile] = []
    for name in several:
        path = Path(name)
        if not name or not path.exists():
            raise FileError(f"{name!r} does not exist", remedy="Check the path of the data.")
        if is_mixture(path):
            files += _entries(path, image_folder, fault)
        else:
            files.append(_data_file(path.name, path, image_folder))
    return files


def _data_file(name: str, path: Path, root: str | None, repeat: float = 1.0) -> DataFile:
    if root is None:
        own = path if path.is_dir() else path.parent
        return DataFile(name, path, Path(os.path.abspath(own)), is_limit=False, repeat=repeat)
    if root and not os.path.isdir(root):
        raise FileError(f"the picture folder {root} does not exist", remedy="Check the path.")
    return DataFile(name, path, Path(os.path.abspath(root)), is_limit=bool(root), repeat=repeat)


def _entries(meta: Path, image_folder: str | None, fault: MixtureFault) -> Iterator[DataFile]:
    def fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            fault("json-duplicate-key", "", f"key {', '.join(twice)} is given twice")
        return made

    entries = json.loads(meta.read_bytes().decode("utf-8-sig"), object_pairs_hook=fields)
    seen: dict[str, str] = {}
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            fault("mixture-entry", name, f"the entry is {json.dumps(entry)[:60]}")
            continue
        repeat = _checked_numbers(name, entry, fault)
        annotation, root = entry.get("annotation"), entry.get("root", image_folder)
        path = _found(annotation, meta.parent) if isinstance(annotation, str) else None
        if path is None:
            fault("mixture-annotation", name, f"annotation is {annotation!r}, and no such file")
            continue
        where = _found(root, meta.parent) if isinstance(root, str) and root else root
        if root is not None and (where is None or (where and not os.path.isdir(str(where)))):
            fault("mixture-root", name, f"root is {root!r}, and no such folder")
            where = None
        if str(path) in seen:
            fault("mixture-annotation-twice", name, f"{annotation} is that of {seen[str(path)]!r}, too")
            continue
        seen[str(path)] = name
        yield _data_file(name, path, None if where is None else str(where), repeat)


def _checked_numbers(name: str, entry: Mapping[str, object], fault: MixtureFault) -> float:
    """Check the entry's keys and numbers; returns its repeat_time, 1 where that is no number above 0."""
    for key in entry:
        if key not in _ENTRY_KEYS:
            fault("mixture-key", name, f"{key!r} is not known. {nearest(key, _ENTRY_KEYS)}".strip())
    if entry.get("data_augment"):
        fault("mixture-augment", name, "data_augment is true")
    if "weight" in entry and entry["weight"] is not None and _number(entry["weight"]) is None:
        fault("mixture-weight", name, f"weight is {entry['weight']!r}")
    repeat = _number(entry.get("repeat_time", 1))
    if repeat is None:
        fault("mixture-repeat", name, f"repeat_time is {entry['repeat_time']!r}")
    return repeat or 1.0


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return None
    return float(value)


def _found(path: str, base: Path) -> Path | None:
    """Find a path of a meta file as the trainer does: in the current folder, else beside the meta file."""
    return next((candidate for candidate in (Path(path), base / path) if candidate.exists()), None)
