"""The original's odds and ends under their old address, `llava.utils`, for outside code.

Kept: names and messages. Not kept: `disable_torch_init` changed torch for the whole process, and
`build_logger` replaced stdout and stderr; the first has nothing left to do (models are built empty), the
second sets up a logger and its file only.
"""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path
from typing import Protocol

from llava.constants import LOGDIR
from llava.log_file import DATE_FORMAT, FORMAT

server_error_msg = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
moderation_msg = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."


class Semaphore(Protocol):
    """What is asked of a semaphore to show it."""

    _value: int

    def locked(self) -> bool:
        """Whether the next one has to wait."""
        ...


def disable_torch_init() -> None:
    """Do nothing: models are built without initialising weights that are loaded anyway."""


def build_logger(logger_name: str, logger_filename: str, *, folder: str | Path = LOGDIR) -> logging.Logger:
    """Return a logger that also writes to a file, one file a day (UTC); called twice it adds nothing.

    stdout and stderr are left alone.
    """
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    path = Path(folder) / logger_filename
    known = {getattr(handler, "baseFilename", None) for handler in logger.handlers}
    if str(path.absolute()) not in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.TimedRotatingFileHandler(
            path, when="D", utc=True, encoding="utf-8", delay=True
        )
        handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
        logger.addHandler(handler)
    return logger


def pretty_print_semaphore(semaphore: Semaphore | None) -> str:
    """Return a semaphore as text for a log line."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"
