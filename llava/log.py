"""Logging: one logger per module, handlers only where a program starts.

A line goes to the terminal, and to the log file of a server that was asked for one (`llava/log_file.py`);
`extra=FILE_ONLY` or `extra=TERMINAL_ONLY` sends it to one of them alone.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Final, Literal

Place = Literal["terminal", "file"]
_PLACE: Final = "only_for"
FILE_ONLY: Final[dict[str, str]] = {_PLACE: "file"}
"""For what nobody at a terminal waits for, such as a line for each request."""
TERMINAL_ONLY: Final[dict[str, str]] = {_PLACE: "terminal"}
"""For what may quote a client, which nothing keeps."""
QUIET: Final = ("transformers", "accelerate", "bitsandbytes", "peft", "httpx", "PIL")
"""Libraries that a terminal hears only when something is wrong."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; call as `get_logger(__name__)`."""
    return logging.getLogger(name)


def is_for(place: Place) -> Callable[[logging.LogRecord], bool]:
    """Return a handler's filter that takes what is for `place`, or for both."""
    return lambda record: getattr(record, _PLACE, place) == place


def configure(*, verbose: bool = False) -> None:
    """Send log lines to stderr; call once, from a program's `main`.

    Libraries below us speak only when something is wrong, so that a command's output is its own.
    """
    levels = dict.fromkeys(QUIET, logging.ERROR) | {"llava": logging.INFO if verbose else logging.WARNING}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(is_for("terminal"))
    # Loggers let more through where a log file wants it.
    handler.addFilter(lambda record: record.levelno >= levels.get(record.name.partition(".")[0], 0))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    if not verbose:
        warnings.simplefilter("ignore")
