"""Append lines to a private file from several threads and processes, so that no two lines mix."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from pathlib import Path

from llava.errors import FileError

_lock = threading.Lock()
_HAS_FLOCK = importlib.util.find_spec("fcntl") is not None
_MODE = 0o600


def append_line(path: Path, record: object) -> None:
    """Append `record` as a line of JSON; raises FileError where the disk does not take it.

    Between processes the file's own lock keeps lines apart; on systems without flock, only that of appending.
    """
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _MODE)
            try:
                _write_locked(handle, line)
            finally:
                os.close(handle)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="Give a folder that can be written, on a disk with room.",
        ) from error


def _write_locked(handle: int, line: bytes) -> None:
    if _HAS_FLOCK:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)  # given back when the file is closed
    size = os.fstat(handle).st_size
    try:
        rest = line
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        os.ftruncate(handle, size)  # a full disk must not leave half a line for the next one to join
        raise
