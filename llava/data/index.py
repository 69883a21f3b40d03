"""Where each sample of a JSON or JSONL file begins: random access to files larger than memory.

Place in the flow: below `formats`. The file is read once, at some hundred megabytes a second; the offsets
(8 bytes a sample) and the sha256 of the content go to a cache folder and are mapped into memory from there,
so that a second open, and every loader process, costs next to nothing. The cache holds for a file as long as
its size and its times of modification and of change are the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from llava.data.json_list import Bytes, Positions, scan_list
from llava.errors import FileError
from llava.files import atomic_path, read_json, write_json
from llava.log import get_logger

_logger = get_logger(__name__)

Layout = Literal["lines", "list"]
Offsets = np.ndarray[tuple[int, int], np.dtype[np.int64]]

_VERSION: Final = 1
_CHUNK_BYTES: Final = 8 << 20
_HEAD_BYTES: Final = 1 << 16
_NEWLINE: Final = ord("\n")
_BOM: Final = b"\xef\xbb\xbf"
_PROGRESS_DELAY_S: Final = 3.0
# A file changed again within one tick of the file system's clock would keep its times.
_SETTLED_NS: Final = 50_000_000


class Stamp(NamedTuple):
    """What changes when a file does."""

    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file; raises FileError when there is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}", remedy="Check the path.") from error
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def default_cache_folder() -> Path:
    """Return where indices are kept: below the user's cache folder, as the XDG rules place it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava" / "data"


@dataclass(frozen=True)
class Cache:
    """Facts about data files, kept between runs under the file's path and stamp."""

    folder: Path = field(default_factory=default_cache_folder)

    def entry(self, path: Path, kind: str) -> Path:
        """Return the file that holds the facts; files beside it begin with the same name."""
        key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
        return self.folder / f"{key}.{kind}.json"

    def load(self, path: Path, kind: str) -> dict[str, object] | None:
        """Return the facts of an unchanged file, or None."""
        entry = self.entry(path, kind)
        if not entry.exists():
            return None
        try:
            facts = read_json(entry)
        except FileError:  # cut off by a crash of the machine: found anew, and written over
            return None
        is_valid = isinstance(facts, dict) and facts.get("version") == _VERSION and facts.get("is_settled")
        return facts if is_valid and facts.get("stamp") == list(stamp_of(path)) else None

    def save(self, path: Path, kind: str, facts: dict[str, object], stamp: Stamp, *, begun_ns: int) -> None:
        """Keep facts found by reading a file that had `stamp` when reading began, at `begun_ns`."""
        if stamp_of(path) != stamp:
            raise FileError(f"{path} was changed while it was read", remedy="Wait until it is written.")
        is_settled = begun_ns - max(stamp.mtime_ns, stamp.ctime_ns) > _SETTLED_NS
        known = {"version": _VERSION, "path": str(path.absolute()), "stamp": list(stamp)}
        write_json(self.entry(path, kind), {**known, "is_settled": is_settled, **facts})


class FileIndex(NamedTuple):
    """Where the samples of a file are."""

    layout: Layout
    sha256: str
    offsets: Offsets
    """int64[1, N + 1]: begin of each sample, and the end; a second row holds line numbers where they are not
    the samples' own (blank lines)."""

    @property
    def num_samples(self) -> int:
        """Number of samples, broken ones included."""
        return int(self.offsets.shape[1]) - 1

    def span(self, index: int) -> tuple[int, int]:
        """Return first byte and end of a sample; in a list the bytes behind it hold a comma, too."""
        return int(self.offsets[0, index]), int(self.offsets[0, index + 1])

    def line(self, index: int) -> int:
        """Return the line of a sample, from 1; for lines only."""
        return int(self.offsets[1, index]) if len(self.offsets) > 1 else index + 1


def open_index(path: Path, cache: Cache) -> FileIndex:
    """Return the index of a JSON list or a JSONL file, built or from the cache.

    Raises FileError when the file is missing, empty, or neither a JSON list nor one JSON object a line.
    """
    facts = cache.load(path, "index")
    if facts is not None and (offsets := _load_offsets(cache, path, facts)) is not None:
        return FileIndex(cast("Layout", facts["layout"]), str(facts["sha256"]), offsets)
    begun_ns = time.time_ns()
    stamp = stamp_of(path)
    layout = _layout(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        chunks = _chunks(stream, digest, stamp.size, path.name)
        offsets = scan_list(path, chunks)[None, :] if layout == "list" else _scan_lines(chunks)
    index = FileIndex(layout, digest.hexdigest(), offsets)
    if index.num_samples == 0:
        raise FileError(f"{path} holds no samples")
    try:
        return index._replace(offsets=_save(index, path, cache, stamp, begun_ns))
    except OSError as error:
        _warn(path, "index stays in memory", cache, error)
        return index


def file_digest(path: Path, cache: Cache) -> str:
    """Return the sha256 of a file's content, in hex; from the cache when the file is unchanged."""
    facts = cache.load(path, "digest")
    if facts is not None:
        return str(facts["sha256"])
    begun_ns, stamp, digest = time.time_ns(), stamp_of(path), hashlib.sha256()
    with path.open("rb") as stream:
        for _ in _chunks(stream, digest, stamp.size, path.name):
            pass
    try:
        cache.save(path, "digest", {"sha256": digest.hexdigest()}, stamp, begun_ns=begun_ns)
    except OSError as error:
        _warn(path, "sha256 is not kept", cache, error)
    return digest.hexdigest()


def _warn(path: Path, what: str, cache: Cache, error: OSError) -> None:
    _logger.warning("%s: its %s, for %s cannot be written: %s", path, what, cache.folder, error.strerror)


def _offsets_path(cache: Cache, path: Path, sha256: str) -> Path:
    entry = cache.entry(path, "index")
    return entry.with_name(f"{entry.name.split('.')[0]}-{sha256[:16]}.npy")


def _save(index: FileIndex, path: Path, cache: Cache, stamp: Stamp, begun_ns: int) -> Offsets:
    """Write the index and return its offsets mapped from the file; those of older content are removed."""
    target = _offsets_path(cache, path, index.sha256)
    for old in cache.folder.glob(f"{target.name.split('-')[0]}-*.npy"):
        if old != target:
            old.unlink(missing_ok=True)
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.save(stream, index.offsets)
    facts: dict[str, object] = {
        "layout": index.layout,
        "sha256": index.sha256,
        "num_samples": index.num_samples,
    }
    cache.save(path, "index", facts, stamp, begun_ns=begun_ns)
    return cast("Offsets", np.load(target, mmap_mode="r"))


def _load_offsets(cache: Cache, path: Path, facts: dict[str, object]) -> Offsets | None:
    """Map the offsets that belong to cached facts, or return None when they are gone or damaged."""
    try:
        offsets = np.load(_offsets_path(cache, path, str(facts["sha256"])), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    is_whole = (
        offsets.dtype == np.int64 and offsets.ndim == 2 and facts["num_samples"] == offsets.shape[1] - 1
    )
    return cast("Offsets", offsets) if is_whole else None


def _layout(path: Path) -> Layout:
    """Say by its first characters how a file holds its samples."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise FileError(f"{path} is empty")
    if text[:1] == b"[":
        return "list"
    if text[:1] != b"{":
        raise FileError(
            f"{path} is neither a JSON list nor one JSON object a line: it begins with {text[:16]!r}",
            remedy="Give JSON, JSONL, parquet or a datasets folder.",
        )
    if text.split(b"\n", 1)[0].strip() == b"{":
        raise FileError(
            f"{path} is a single JSON object laid out over several lines",
            remedy="Put the samples into a list, or one object on each line.",
        )
    return "lines"


def _chunks(stream: BinaryIO, digest: hashlib._Hash, size: int, name: str) -> Iterator[bytes]:
    """Read a file in pieces while hashing it, with a progress bar when that takes long."""
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=f"reading {name}", delay=_PROGRESS_DELAY_S, leave=False
    ) as bar:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            yield chunk
            bar.update(len(chunk))


def _scan_lines(chunks: Iterator[bytes]) -> Offsets:
    """Return where each line that is not blank begins; the last number is the end of the file."""
    starts: list[Positions] = []
    lines: list[Positions] = []
    position, line, carried, is_first, has_blank = 0, 1, b"", True, False

    def take(block: bytes) -> None:
        nonlocal position, line, has_blank
        begins = _line_starts(block)
        is_sample = _has_text(block, begins)
        has_blank |= not bool(is_sample.all())
        starts.append(begins[is_sample] + position)
        lines.append(np.flatnonzero(is_sample) + line)
        position += len(block)
        line += begins.size

    for chunk in chunks:
        if is_first and chunk.startswith(_BOM):
            position, chunk = len(_BOM), chunk[len(_BOM) :]
        is_first = False
        cut = chunk.rfind(b"\n") + 1
        if cut:
            take(carried + chunk[:cut])
            carried = chunk[cut:]
        else:
            carried += chunk
    if carried:
        take(carried)
    begins = np.concatenate([*starts, np.array([position], dtype=np.int64)])
    if not has_blank:
        return begins[None, :]
    return np.stack([begins, np.concatenate([*lines, np.array([line], dtype=np.int64)])])


def _line_starts(block: bytes) -> Positions:
    """Return where the lines of a block begin; a newline at its end begins none."""
    data: Bytes = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data[:-1] == _NEWLINE)
    return np.concatenate([np.zeros(1, dtype=np.int64), ends + 1])


def _has_text(block: bytes, begins: Positions) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Say of each line whether it holds more than white space."""
    data: Bytes = np.frombuffer(block, dtype=np.uint8)
    has_text = data[begins] > ord(" ")
    ends = np.append(begins[1:], len(block))
    for number in np.flatnonzero(~has_text).tolist():
        has_text[number] = bool(block[int(begins[number]) : int(ends[number])].strip())
    return has_text
