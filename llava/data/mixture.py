"""Several data sets as one: the original's meta file, with repetition, weights, and what an epoch is made of.

Place in the flow: above `formats`; the scan, the order and the loader see a `Mixture`. A sample's index is
its place among all samples, each counted once; `epoch_indices` says which of them an epoch visits, and how
often. It is a function of seed and epoch alone.

The original (`train_custom.py`) computed weights and used none, and read `data_augment` into nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from llava.command import nearest
from llava.data.formats import open_source
from llava.data.records import Record, RecordSource
from llava.errors import ConfigError, DataError, FileError
from llava.files import read_text
from llava.log import get_logger

_logger = get_logger(__name__)

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]

_ENTRY_KEYS: Final = ("root", "annotation", "data_augment", "repeat_time", "weight")


class DataPaths(Protocol):
    """What of a run's data options says which samples there are."""

    @property
    def path(self) -> str | None:
        """Files or folders of samples, with commas between them."""
        ...

    @property
    def meta(self) -> str | None:
        """Meta file of a mixture."""
        ...

    @property
    def image_folder(self) -> str | None:
        """Where relative picture paths begin."""
        ...


@dataclass(frozen=True)
class Entry:
    """One data set of a mixture, as its meta file states it."""

    name: str
    annotation: str
    """File or folder of samples; relative to the current folder, else to the meta file's."""
    root: str | None = None
    """Where relative picture paths begin; None: the annotation's folder, "": the current folder."""
    repeat_time: float = 1.0
    """How often an epoch visits each sample; a fraction stands for a part of the data that the seed picks,
    the same in every epoch."""
    weight: float | None = None
    """Share of an epoch relative to the other entries' weights; None: by size and `repeat_time`."""
    data_augment: bool = False
    """Without effect, as in the original."""

    def __post_init__(self) -> None:
        for key, value in (("repeat_time", self.repeat_time), ("weight", self.weight)):
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 < value < math.inf:
                raise ConfigError(f"{key} of {self.name!r} is {value!r}", remedy="Use a number above 0.")
        if self.weight is not None and self.repeat_time != 1:
            raise ConfigError(
                f"{self.name!r} has both a weight and a repeat_time of {self.repeat_time:g}",
                remedy="Keep one: a weight says how much of an epoch the entry is, whatever its size.",
            )


class Mixture:
    """Samples of several sources under one numbering, in the order of the sources."""

    def __init__(self, entries: Sequence[Entry], sources: Sequence[RecordSource]) -> None:
        """Join sources; `entries` and `sources` belong together one by one.

        Raises ConfigError for two entries of one name, and when some entries have a weight and others not.
        """
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"two entries are called {twice!r}", remedy="Give each a name of its own.")
        without = [entry.name for entry in entries if entry.weight is None]
        if without and len(without) < len(entries):
            raise ConfigError(
                f"some entries have a weight and others have none: {', '.join(without[:5])}",
                remedy="Give all of them a weight, or none.",
            )
        self.entries = tuple(entries)
        self.sources = tuple(sources)
        sizes = [len(source) for source in sources]
        self._begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        """Return the number of samples, each counted once."""
        return int(self._begins[-1])

    def __getitem__(self, index: int) -> Record:
        """Return one sample; raises DataError with its place when it breaks the format."""
        source, place = self._locate(index)
        return self.sources[source][place]

    def raw(self, index: int) -> object:
        """Return one sample as its file has it; raises DataError when it cannot be read at all."""
        source, place = self._locate(index)
        return self.sources[source].raw(place)

    def where(self, index: int) -> str:
        """Say which file and which place in it hold a sample."""
        source, place = self._locate(index)
        return self.sources[source].where(place)

    def source_of(self, index: int) -> str:
        """Return the name of the entry that a sample belongs to."""
        return self.entries[self._locate(index)[0]].name

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of what decides which samples there are: contents, repetition, weights, order.

        Not of the pictures, nor of where the files are.
        """
        parts = [
            [entry.name, source.fingerprint, float(entry.repeat_time), entry.weight]
            for entry, source in zip(self.entries, self.sources, strict=True)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def samples_per_epoch(self) -> int:
        """How many samples an epoch visits, the same in every epoch."""
        return sum(self.entry_sizes())

    def entry_sizes(self) -> list[int]:
        """Return how many samples of each entry an epoch visits.

        By weights, an epoch is as long as all data together, and entries share it by largest remainder.
        """
        sizes = np.diff(self._begins)
        weights = [entry.weight for entry in self.entries if entry.weight is not None]
        if not weights:
            return [
                max(1, round(float(size) * entry.repeat_time))
                for size, entry in zip(sizes, self.entries, strict=True)
            ]
        exact = np.array(weights, dtype=np.float64) / math.fsum(weights) * float(sizes.sum())
        shares = np.floor(exact).astype(np.int64)
        most = np.argsort(shares - exact, kind="stable")
        shares[most[: int(sizes.sum() - shares.sum())]] += 1
        return [int(share) for share in shares]

    def epoch_indices(self, seed: int, epoch: int) -> Indices:
        """Return the samples that an epoch visits, in the order of the entries and not shuffled: int64[M].

        Without weights, every sample as often as its entry's `repeat_time`, whole rounds one after another as
        in the original. With weights, epoch after epoch takes the next part of an endless series of
        permutations of the entry, so that its samples are visited equally often, give or take one.
        """
        parts = []
        for number, (entry, share) in enumerate(zip(self.entries, self.entry_sizes(), strict=True)):
            begin, end = int(self._begins[number]), int(self._begins[number + 1])
            if entry.weight is None:
                places = _rounds(end - begin, share, seed, number)
            else:
                places = _stream(end - begin, epoch * share, share, seed, number)
            parts.append(places + begin)
        return np.concatenate(parts)

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the source of a sample and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(f"the data has {len(self)} samples; there is no number {index}")
        source = int(np.searchsorted(self._begins, index, side="right")) - 1
        return source, index - int(self._begins[source])


def open_mixture(
    meta_path: str | os.PathLike[str],
    *,
    image_folder: str | None = None,
    cache_folder: Path | None = None,
) -> Mixture:
    """Open the data sets that a meta file lists.

    image_folder: for entries that state no `root`. cache_folder: see `open_source`.
    Raises what `read_meta` and `open_source` raise.
    """
    entries = read_meta(meta_path)
    base = Path(meta_path).parent
    sources = []
    for entry in entries:
        root = image_folder if entry.root is None else entry.root and _found(entry.root, base, entry.name)
        annotation = _found(entry.annotation, base, entry.name)
        sources.append(open_source(annotation, image_folder=root, name=entry.name, cache_folder=cache_folder))
    return Mixture(entries, sources)


def read_meta(path: str | os.PathLike[str]) -> list[Entry]:
    """Read a meta file without opening its data.

    Raises FileError for what is no JSON, DataError for entries that break the format, ConfigError for values
    out of range. Warns where `data_augment` is on, which nothing reads.
    """
    path = Path(path)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise DataError(f"{key!r} is given twice", remedy="Keep one of them.", where=str(path))
        return dict(pairs)

    try:
        meta = json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise FileError(f"{path} is not JSON: {error}") from error
    if not isinstance(meta, dict) or not meta:
        raise DataError(
            "a mixture is a JSON object of names and entries",
            remedy='Write {"name": {"root": ..., "annotation": ..., "repeat_time": 1}}.',
            where=str(path),
        )
    entries = [_entry(name, fields, f"{path} entry {name!r}") for name, fields in meta.items()]
    augmented = [entry.name for entry in entries if entry.data_augment]
    if augmented:
        _logger.warning("%s: data_augment has no effect (%s)", path, ", ".join(augmented))
    return entries


def open_data(options: DataPaths, *, cache_folder: Path | None = None) -> Mixture:
    """Open the training data that the options name: a meta file, or one or several paths.

    Raises ConfigError unless exactly one of `path` and `meta` is set, and what the opening raises.
    """
    if (options.path is None) == (options.meta is None):
        raise ConfigError(
            "data.path and data.meta are " + ("both set" if options.path else "both missing"),
            remedy="Give one of them.",
        )
    if options.meta is not None:
        return open_mixture(options.meta, image_folder=options.image_folder, cache_folder=cache_folder)
    assert options.path is not None  # the other of the two
    return open_paths(options.path, image_folder=options.image_folder, cache_folder=cache_folder)


def open_paths(paths: str, *, image_folder: str | None = None, cache_folder: Path | None = None) -> Mixture:
    """Open one path, or several with commas between them; a path that exists may hold commas itself.

    Each is called by its stem, and "stem-2" where the stem is taken. Raises what `open_source` raises.
    """
    several = [paths] if os.path.exists(paths) else [part.strip() for part in paths.split(",")]
    if not all(several):
        raise ConfigError(f"data.path is {paths!r}", remedy="Give paths with one comma between any two.")
    names: list[str] = []
    for path in several:
        stem, number = Path(path).stem, 1
        while (name := stem if number == 1 else f"{stem}-{number}") in names:
            number += 1
        names.append(name)
    sources = [
        open_source(path, image_folder=image_folder, name=name, cache_folder=cache_folder)
        for path, name in zip(several, names, strict=True)
    ]
    return Mixture(
        [Entry(name, path, image_folder) for path, name in zip(several, names, strict=True)], sources
    )


def _entry(name: str, fields: object, where: str) -> Entry:
    """Read one entry of a meta file."""
    if not isinstance(fields, dict):
        raise DataError(f"an entry is of type {type(fields).__name__}, not an object", where=where)
    for key in fields:
        if key not in _ENTRY_KEYS:
            hint = nearest(key, _ENTRY_KEYS)
            raise DataError(
                f"{key!r} is not known", remedy=f"{hint}Known: {', '.join(_ENTRY_KEYS)}.", where=where
            )
    kinds: dict[str, tuple[type, ...]] = {
        "annotation": (str,),
        "root": (str, type(None)),
        "data_augment": (bool,),
    }
    for key, kind in kinds.items():
        if (key in fields or key == "annotation") and not isinstance(fields.get(key), kind):
            raise DataError(f"{key} is {fields.get(key)!r}", remedy="See docs/training.md.", where=where)
    return Entry(name=name, **fields)


def _found(path: str, base: Path, name: str) -> str:
    """Find a path of a meta file: in the current folder as in the original, else beside the meta file."""
    for candidate in (path, os.path.join(base, path)):
        if os.path.exists(candidate):
            return candidate
    beside = "" if os.path.isabs(path) else f", neither in the current folder nor in {base}"
    raise FileError(f"{path} of entry {name!r} does not exist{beside}", remedy="Check the meta file.")


def _permutation(size: int, seed: int, entry: int, number: int) -> Indices:
    """Return a permutation that is the same with every version of numpy (RandomState is frozen)."""
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, entry, number]
    return np.random.RandomState(np.array(words, dtype=np.uint32)).permutation(size).astype(np.int64)


def _rounds(size: int, share: int, seed: int, entry: int) -> Indices:
    """Return every place as often as it fits into `share`, and a fixed part for the rest."""
    whole = np.tile(np.arange(size, dtype=np.int64), share // size)
    if share % size == 0:
        return whole
    return np.concatenate([whole, np.sort(_permutation(size, seed, entry, 0)[: share % size])])


def _stream(size: int, begin: int, share: int, seed: int, entry: int) -> Indices:
    """Return `share` places from `begin` on, out of permutations laid end to end, in ascending order."""
    first, last = begin // size, (begin + share - 1) // size
    series = [_permutation(size, seed, entry, number) for number in range(first, last + 1)]
    places = np.concatenate([*series, np.zeros(0, dtype=np.int64)])
    return np.sort(places[begin - first * size :][:share])
