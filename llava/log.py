"""Logging: one logger per module, handlers only where a program starts."""

from __future__ import annotations

import logging
import sys
import warnings


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; call as `get_logger(__name__)`."""
    return logging.getLogger(name)


def configure(*, verbose: bool = False) -> None:
    """Send log lines to stderr; call once, from a program's `main`.

    Libraries below us speak only when something is wrong, so that a command's output is its own.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("llava").setLevel(logging.INFO if verbose else logging.WARNING)
    for name in ("transformers", "accelerate", "bitsandbytes", "peft", "httpx", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not verbose:
        warnings.simplefilter("ignore")
