"""Files of records that grow while a long job runs, and say how they were made.

    OUTPUT                  one JSON record a line, appended
    OUTPUT.settings.json    what the records depend on; a job with other settings is refused

A job that is killed at any moment leaves whole lines and at most one torn one, which the next run cuts off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from llava.errors import FileError, UsageError
from llava.files import read_json

SYNC_INTERVAL_S = 1.0
_READ_BYTES = 1 << 16


def settings_path(path: Path) -> Path:
    """Return where the settings of the output `path` are kept."""
    return path.with_name(path.name + ".settings.json")


def differences(before: object, now: Mapping[str, object]) -> list[str]:
    """Return what differs between stored settings and those of `now`, as "name (old, now new)"."""
    stored = before if isinstance(before, Mapping) else {}
    return [
        f"{name} ({stored.get(name)!r}, now {value!r})"
        for name, value in now.items()
        if stored.get(name) != value
    ]


def check_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Raise UsageError unless the output `path` was made with `settings`; what else is recorded is free."""
    stored_at = settings_path(path)
    if not stored_at.exists():
        raise UsageError(
            f"{path} exists without {stored_at.name}, which would say how it was made",
            remedy="Give another --output.",
        )
    differing = differences(read_json(stored_at), settings)
    if differing:
        raise UsageError(
            f"{path} was made with other settings: {', '.join(differing)}",
            remedy="Give another --output, or the same settings.",
        )


def cut_torn_line(path: Path) -> bool:
    """Cut off a last line that a killed run left unfinished; returns whether there was one."""
    with path.open("rb+") as stream:
        end = position = stream.seek(0, os.SEEK_END)
        keep = 0
        while position > 0:
            begin = max(0, position - _READ_BYTES)
            stream.seek(begin)
            newline = stream.read(position - begin).rfind(b"\n")
            if newline >= 0:
                keep = begin + newline + 1
                break
            position = begin
        if keep == end:
            return False
        stream.truncate(keep)
    return True


class Journal:
    """Appends records to a file; what is older than a second is on the disk, whatever happens.

    Only one process at a time can have it open, where the system has locks.
    """

    def __init__(self, path: Path, *, sync_interval_s: float = SYNC_INTERVAL_S) -> None:
        """Open for appending; a torn last line is cut off.

        Raises UsageError when another process has it open, FileError when it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise FileError(f"{path} cannot be written: {error.strerror}") from error
        self._path = path
        self._interval_s = sync_interval_s
        self._synced_at = time.monotonic()
        self._is_open = True
        if not _lock(self._descriptor):
            os.close(self._descriptor)
            raise UsageError(
                f"{path} is being written by another process", remedy="Wait for it, or give another --output."
            )
        cut_torn_line(path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, record: object) -> None:
        """Append one line; raises FileError when the disk does not take it, and leaves no half of it."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        begin = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            if time.monotonic() - self._synced_at >= self._interval_s:
                self._sync()
        except OSError as error:
            os.ftruncate(self._descriptor, begin)
            raise self._failure(error) from error

    def close(self) -> None:
        """Bring everything to the disk and let the file go. May be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._sync()
        except OSError as error:
            raise self._failure(error) from error
        finally:
            os.close(self._descriptor)

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced_at = time.monotonic()

    def _failure(self, error: OSError) -> FileError:
        return FileError(
            f"{self._path} cannot be written: {error.strerror}",
            remedy="Make room; the same command then goes on from here.",
        )


def _lock(descriptor: int) -> bool:
    """Take the file for this process until it is closed; False when another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows: two writers are the user's own care there.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
