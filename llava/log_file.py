"""The log file of a server: a line for each record, a new file every UTC day, readable by its owner alone.

Names, days and the form of a line are the original's (`build_logger` in its `llava/utils.py`). Unlike there,
a file is only made where it is asked for, stdout and stderr stay what they are, and times are UTC as the days
are. Once serving has begun, no trouble with the file ends it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import logging.handlers
import os
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Final

from llava.command import describe_error, note
from llava.errors import FileError, LlavaError
from llava.log import FILE_ONLY, QUIET, get_logger, is_for

FORMAT: Final = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
DATE_FORMAT: Final = "%Y-%m-%d %H:%M:%S"
KEPT_DAYS: Final = 30
"""Files of earlier days that are kept beside today's."""
_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_SILENT: Final = "transformers"
"""Passes no record on to the root logger."""
_HAS_FLOCK: Final = importlib.util.find_spec("fcntl") is not None

_logger = get_logger(__name__)


class LogFile(logging.handlers.TimedRotatingFileHandler):
    """Inside a `with`, takes INFO of this project and WARNING of libraries; says how the block ended."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; raises FileError where it cannot be written, or another process does."""
        self._is_failing = self._has_failed = False
        self._levels: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
            super().__init__(
                path,
                when="midnight",
                backupCount=KEPT_DAYS,
                encoding="utf-8",
                utc=True,
                errors="backslashreplace",
            )
        except BlockingIOError:
            raise FileError(
                f"{path} is written by another process", remedy="Give each its own --log-dir."
            ) from None
        except OSError as error:
            raise FileError(
                f"{path} cannot be written: {error.strerror or error}",
                remedy="Give --log-dir a folder that can be written, on a disk with room.",
            ) from None
        self.setFormatter(_OneLine(FORMAT, DATE_FORMAT))
        self.addFilter(is_for("file"))

    def _open(self) -> TextIOWrapper:
        stream = open(  # noqa: SIM115
            self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_private
        )
        try:
            _lock(stream)
        except BlockingIOError:
            stream.close()
            raise
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, into a new file where a day has begun."""
        self._has_failed = False
        super().emit(record)
        self._is_failing = self._has_failed

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the file cannot be written; its lines are lost until it can be."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)  # a mistake in the call that logs
            return
        self._has_failed = True
        if not self._is_failing:
            # stderr may be on the same full disk.
            with contextlib.suppress(OSError):
                note(f"{self.baseFilename} cannot be written, and serving goes on: {error.strerror or error}")

    def __enter__(self) -> LogFile:
        """Take what is logged from now on."""
        for name, least in (("llava", logging.INFO), *((name, logging.WARNING) for name in QUIET)):
            logger = logging.getLogger(name)
            # What passes nothing on has a handler of its own, which would say more.
            if logger.propagate:
                self._levels[name] = logger.level
                logger.setLevel(min(logger.level or least, least))
        for place in (None, _SILENT):
            logging.getLogger(place).addHandler(self)
        _logger.info("process %d started", os.getpid(), extra=FILE_ONLY)
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """Say how it ended, and leave everything as it was."""
        if isinstance(error, LlavaError):
            _logger.error("%s", describe_error(error), extra=FILE_ONLY)
        elif error is not None:
            _logger.critical("%s", type(error).__name__, exc_info=error, extra=FILE_ONLY)
        _logger.info("process %d ended", os.getpid(), extra=FILE_ONLY)
        for place in (None, _SILENT):
            logging.getLogger(place).removeHandler(self)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        with contextlib.suppress(OSError):  # what a full disk did not take was told
            self.close()


class _OneLine(logging.Formatter):
    """Keeps a message on its own line, whatever is in it; a traceback follows it. Times are UTC."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return a record without its traceback."""
        return "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode()
            for char in super().formatMessage(record)
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _FILE_MODE)


def _lock(stream: TextIOWrapper) -> None:
    """Keep other processes out: two that rename one file at midnight would lose a day.

    Raises BlockingIOError where one has it. The lock ends with the process.
    """
    if not _HAS_FLOCK:
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # some network folders have no locks
