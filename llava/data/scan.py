"""One pass over the data before training: how long every sample is, and which cannot be used.

Place in the flow: `mixture` and `samples` -> here -> `plan`. Text is encoded, pictures are only counted. The
result is kept on disk under a key made of everything it depends on, so that a second run of the same recipe
begins at once.

N samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from llava.command import note
from llava.data.policy import BadSample, BadSampleLog
from llava.data.samples import SampleEncoder
from llava.data.workers import ordered_map
from llava.errors import DataError, LlavaError
from llava.files import atomic_path
from llava.log import get_logger

if TYPE_CHECKING:
    from llava.data.records import Record

_logger = get_logger(__name__)
_VERSION: Final = 1
"""Raise it when the arrays of the same data would change."""
_CHUNK: Final = 256
"""Samples per piece of work: small enough to share out, large enough to travel."""
_SAID_EVERY_S: Final = 10.0

Ints = np.ndarray[Any, np.dtype[np.int32]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
OnProgress = Callable[[int, int, float], None]
"""Called with samples done, samples in all, and seconds left."""


class Data(Protocol):
    """What is scanned and loaded: a mixture, or anything alike."""

    @property
    def fingerprint(self) -> str:
        """Changes when the content does."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record:
        """Return a record; raises DataError where the sample breaks the format."""
        ...

    def raw(self, index: int, /) -> object:
        """Return a sample as its file has it; raises DataError when it cannot be read at all."""
        ...

    def where(self, index: int, /) -> str:
        """Say which file and which place in it hold a sample."""
        ...

    def source_of(self, index: int, /) -> str:
        """Return the name of a sample's source."""
        ...


@dataclass(frozen=True)
class Scan:
    """Lengths of all samples; a bad sample has zeros."""

    tokens: Ints
    """int32[N]: positions in the model, pictures expanded."""
    targets: Ints
    """int32[N]: positions that are trained."""
    pictures: Ints
    """int32[N]"""
    words: Ints
    """int32[N]: the original's measure, words of all turns, negative where there is no picture."""
    is_usable: Bools
    """bool[N]: neither bad nor without anything to train."""
    is_truncated: Bools
    """bool[N]"""
    is_masked: Bools
    """bool[N]: fine, but with nothing to train; left out of every plan, which changes no gradient."""
    bad: tuple[BadSample, ...]
    """In the data's order."""

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.tokens)

    def summary(self) -> str:
        """Return one line on what was found."""
        usable = self.is_usable
        parts = [
            f"{self.num_samples} samples: {int(usable.sum())} usable",
            f"{int(self.tokens[usable].sum(dtype=np.int64))} tokens",
            f"{int(self.targets[usable].sum(dtype=np.int64))} of them trained",
            f"{int(self.pictures[usable].sum())} pictures",
            f"{int(self.is_truncated.sum())} truncated",
            f"{int(self.is_masked.sum())} with nothing to train",
            f"{len(self.bad)} bad",
        ]
        return ", ".join(parts)


def scan(
    data: Data,
    encoder: SampleEncoder,
    *,
    cache_folder: Path | None = None,
    num_workers: int = 0,
    checks_pictures: bool = False,
    on_progress: OnProgress | None = None,
) -> Scan:
    """Measure every sample, or read the measures of an earlier scan of the same.

    cache_folder: where scans are kept; None: nowhere. num_workers: processes; 0 scans in this one.
    checks_pictures: a sample whose picture file is missing is bad; nothing is opened.
    on_progress: by default a line on stderr every ten seconds. Raises DataError when a worker dies.
    """
    path = None if cache_folder is None else cache_folder / f"scan-{_key(data, encoder, checks_pictures)}.npz"
    kept = None if path is None else _read(path, len(data))
    if kept is not None:
        return kept
    pieces = _with_progress(_pieces(data, encoder, checks_pictures, num_workers), len(data), on_progress)
    result = _gathered(pieces, len(data))
    if path is not None:
        _write(path, result)
    return result


def bad_sample(data: Data, index: int, error: LlavaError, record: Record | None = None) -> BadSample:
    """Describe a sample that cannot be used; `record`: the sample where it could be read."""
    where = data.where(index)
    return BadSample(
        index=index,
        id="" if record is None else record.id,
        source=data.source_of(index),
        where=where,
        reason=error.cause.removeprefix(f"{where}: "),
    )


def report(scan: Scan, data: Data, log: BadSampleLog) -> None:
    """Hand the samples that cannot be used, or hold nothing to train, to the policy.

    Raises DataError where the policy ends the run.
    """
    for sample in scan.bad:
        log.add(sample, content=content_of(data, sample.index), is_shared=True)
    for index in np.flatnonzero(scan.is_masked).tolist():
        nothing = DataError("nothing of the sample is trained: its answers are empty or cut off")
        sample = bad_sample(data, index, nothing, data[index])
        log.add(sample, content=content_of(data, index), is_fatal=False, is_shared=True)


def content_of(data: Data, index: int) -> object:
    """Return a bad sample as its file has it, or None when not even that can be read."""
    try:
        return data.raw(index)
    except DataError:
        return None


class _Piece(NamedTuple):
    """The measures of some samples in a row."""

    start: int
    numbers: Ints
    """int32[n, 5]: tokens, targets, pictures, words, whether truncated."""
    bad: list[BadSample]


class _Measurer:
    """Measures pieces of the data; travels to worker processes."""

    def __init__(self, data: Data, encoder: SampleEncoder, checks_pictures: bool) -> None:
        self._data = data
        self._encoder = encoder
        self._checks_pictures = checks_pictures

    def __call__(self, indices: range) -> _Piece:
        numbers = np.zeros((len(indices), 5), dtype=np.int32)
        bad = []
        for row, index in enumerate(indices):
            record = None
            try:
                record = self._data[index]
                numbers[row] = self._measure(record)
            except LlavaError as error:
                bad.append(bad_sample(self._data, index, error, record))
        return _Piece(indices.start, numbers, bad)

    def _measure(self, record: Record) -> tuple[int, int, int, int, bool]:
        encoded = self._encoder.encode(record)
        if self._checks_pictures:
            _check_files(record)
        num_words = sum(len(turn["value"].split()) for turn in record.turns)
        signed = num_words if record.images else -num_words
        return encoded.num_tokens, encoded.num_targets, len(encoded.images), signed, encoded.is_truncated


def _check_files(record: Record) -> None:
    """Raise DataError for a picture path that is no file."""
    for image in record.images:
        if isinstance(image, str) and os.path.isabs(image) and not os.path.isfile(image):
            raise DataError(
                f"picture {image} does not exist", remedy="Check data.image_folder.", where=record.where
            )


def _pieces(data: Data, encoder: SampleEncoder, checks_pictures: bool, num_workers: int) -> Iterator[_Piece]:
    chunks = [range(start, min(start + _CHUNK, len(data))) for start in range(0, len(data), _CHUNK)]
    # A single piece of work is done before a process has begun.
    num_workers = num_workers if len(chunks) > 1 else 0
    return ordered_map(
        _Measurer(data, encoder, checks_pictures),
        chunks,
        num_workers=min(num_workers, len(chunks)),
        ahead=2 * num_workers,
    )


def _with_progress(pieces: Iterable[_Piece], total: int, on_progress: OnProgress | None) -> Iterator[_Piece]:
    begin = said = time.monotonic()
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece.numbers)
        now = time.monotonic()
        seconds_left = (now - begin) / done * (total - done)
        if on_progress is not None:
            on_progress(done, total, seconds_left)
        elif now - said >= _SAID_EVERY_S:
            said = now
            note(f"measuring samples: {done} of {total}, {math.ceil(seconds_left)} s left")


def _gathered(pieces: Iterable[_Piece], num_samples: int) -> Scan:
    numbers = np.zeros((num_samples, 5), dtype=np.int32)
    bad: list[BadSample] = []
    for piece in pieces:
        numbers[piece.start : piece.start + len(piece.numbers)] = piece.numbers
        bad += piece.bad
    is_bad = np.zeros(num_samples, dtype=np.bool_)
    is_bad[[one.index for one in bad]] = True
    tokens, targets, pictures, words, truncated = (column.copy() for column in numbers.T)
    return Scan(
        tokens=tokens,
        targets=targets,
        pictures=pictures,
        words=words,
        is_usable=~is_bad & (targets > 0),
        is_truncated=truncated.astype(np.bool_),
        is_masked=~is_bad & (targets == 0),
        bad=tuple(bad),
    )


def _key(data: Data, encoder: SampleEncoder, checks_pictures: bool) -> str:
    """Return a name for everything the measures depend on."""
    tokenizer = encoder.tokenizer
    parts = [
        _VERSION,
        data.fingerprint,
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.init_kwargs.get("legacy", True),
        repr(encoder.template),
        encoder.num_image_tokens,
        encoder.max_length,
        encoder.truncation,
        encoder.im_start_end,
        encoder.has_pictures,
        checks_pictures,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


_ARRAYS = tuple(field.name for field in fields(Scan) if field.name != "bad")


def _read(path: Path, num_samples: int) -> Scan | None:
    """Read a kept scan; None when there is none, or not a whole one."""
    try:
        with path.open("rb") as stream, np.load(stream) as content:
            arrays = {name: content[name] for name in _ARRAYS}
            bad = tuple(BadSample(**one) for one in json.loads(str(content["bad"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        _logger.warning("%s cannot be read (%s); the data is measured again", path, error)
        return None
    if any(len(array) != num_samples for array in arrays.values()):
        return None
    return Scan(**arrays, bad=bad)


def _write(path: Path, result: Scan) -> None:
    """Keep a scan; a folder that cannot be written costs the next run a scan and no more."""
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            arrays = {name: getattr(result, name) for name in _ARRAYS}
            np.savez(stream, bad=np.array(json.dumps([asdict(one) for one in result.bad])), **arrays)
    except OSError as error:
        _logger.warning("the measures of the data cannot be kept in %s: %s", path.parent, error)
