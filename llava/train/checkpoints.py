"""Checkpoints of a run under way: whole or not there, and checked before they are trusted.

    OUTPUT/checkpoint-N/state/...       weights that learn and optimizer, as the engine writes them
    OUTPUT/checkpoint-N/trainer.json    step, data hash, configuration
    OUTPUT/checkpoint-N/complete.json   size and CRC-32 of every file; written last

A checkpoint is written beside its place under a name that nothing reads, synced to disk and renamed, so that
a run killed at any moment leaves complete checkpoints and perhaps a remnant, which the next save removes.
Random states need no file: `loop` seeds them by (seed, step, rank).
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import CheckpointError, FileError
from llava.files import read_json, write_json
from llava.log import get_logger

_logger = get_logger(__name__)

STATE = "state"
INFO = "trainer.json"
COMPLETE = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    folder: Path
    step: int
    info: Mapping[str, Any]

    @property
    def state(self) -> Path:
        """Folder of the engine's files."""
        return self.folder / STATE


class CheckpointStore:
    """The checkpoints in a run's output folder."""

    def __init__(self, output_dir: Path, *, limit: int | None) -> None:
        """limit: how many to keep, at least one; None keeps all."""
        self._folder = output_dir
        self._limit = None if limit is None else max(1, limit)

    def write(
        self,
        step: int,
        *,
        write_state: Callable[[Path], None],
        info: Mapping[str, Any],
        is_main: bool = True,
        barrier: Callable[[], None] = lambda: None,
    ) -> Path:
        """Write checkpoint-`step`; every rank calls this, `write_state` with the same folder.

        Raises FileError when the disk is full or cannot be written; what was there before stays.
        """
        final = self._folder / f"checkpoint-{step}"
        partial = self._folder / f".checkpoint-{step}.part"
        try:
            if is_main:
                self._remove_remnants()
                (partial / STATE).mkdir(parents=True)
            barrier()
            write_state(partial / STATE)
            barrier()
            if is_main:
                write_json(partial / INFO, {"step": step, **info})
                _seal(partial)
                _replace(partial, final)
                self._prune()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.newest()
            where = f"The last complete checkpoint is {kept.folder}" if kept else "No checkpoint is complete"
            raise FileError(
                f"checkpoint-{step} could not be written to {self._folder}: {error.strerror or error}",
                remedy=f"{where}. Free space or mend the folder, and start the same command again.",
            ) from error
        barrier()
        return final

    def newest(self) -> Saved | None:
        """Return the newest checkpoint whose every file is as it was written; says which ones are not."""
        for folder in self._folders():
            reason = _fault(folder)
            if reason is None:
                info = read_json(folder / INFO)
                return Saved(folder, int(info["step"]), info)
            _logger.warning("%s is not used: %s", folder, reason)
        return None

    def require_newest(self) -> Saved:
        """Return the newest complete checkpoint; raises CheckpointError when there is none."""
        saved = self.newest()
        if saved is None:
            raise CheckpointError(
                f"{self._folder} holds no complete checkpoint", remedy="Start without resuming."
            )
        return saved

    def _folders(self) -> list[Path]:
        """Return checkpoint folders, the newest first."""
        if not self._folder.is_dir():
            return []
        named = [(match, path) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]), reverse=True)]

    def _prune(self) -> None:
        """Remove all but the newest `limit` checkpoints; the one just written is complete and among them."""
        if self._limit is None:
            return
        for folder in self._folders()[self._limit :]:
            if (folder / COMPLETE).is_file():
                # Renamed first: a removal that is interrupted leaves no half checkpoint under a good name.
                doomed = self._folder / f".{folder.name}.old"
                folder.rename(doomed)
                shutil.rmtree(doomed)

    def _remove_remnants(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(".checkpoint-*"):
            shutil.rmtree(path)


def check_writable(output_dir: Path) -> None:
    """Raise FileError, before anything is loaded, when a run could not write its folder."""
    probe = output_dir / ".writable"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise FileError(
            f"{output_dir} cannot be written: {error.strerror}", remedy="Give another run.output_dir."
        ) from error


def _seal(folder: Path) -> None:
    """Sync every file and write complete.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    table = {path.relative_to(folder).as_posix(): _size_and_crc(path) for path in files}
    for path in files:
        _sync(path)
    write_json(folder / COMPLETE, {"files": table})
    for path in sorted({path.parent for path in files}):
        _sync(path)


def _replace(partial: Path, final: Path) -> None:
    """Put a sealed folder in its place; a checkpoint of the same step there is an older run of this one."""
    if final.exists():
        old = final.with_name(f".{final.name}.old")
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old)
    else:
        partial.rename(final)
    _sync(final.parent)


def _fault(folder: Path) -> str | None:
    """Return why a checkpoint cannot be trusted, or None."""
    if not (folder / COMPLETE).is_file():
        return f"it has no {COMPLETE}; it was not finished, or another program wrote it"
    try:
        table = read_json(folder / COMPLETE)["files"]
    except (FileError, KeyError, TypeError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    for name, expected in table.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _size_and_crc(path) != expected:
            return f"{name} is damaged"
    return None


def _size_and_crc(path: Path) -> list[int]:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
