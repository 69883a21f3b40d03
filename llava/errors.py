"""Every error a user can meet: what went wrong, with which value, and what to do about it.

    LlavaError                     exit code 2, code "error"
    +-- UsageError                 a command or option that cannot be carried out
    +-- ConfigError                a field with a value it cannot have
    +-- DependencyError            an optional package that is not installed
    +-- FileError                  a file that is missing, unreadable or not what its name says
    |   +-- ImageError             not a picture, or one that cannot be decoded
    |       +-- ImageLimitError    a picture over a limit (bytes, pixels, aspect ratio, frames, count)
    +-- CheckpointError            a folder that is no checkpoint, or not one that can be loaded
    |   +-- WeightsError           tensors missing, unexpected, misshapen or corrupt
    +-- TokenizerError             a tokenizer that is missing or cannot be converted exactly
    +-- PromptError                a conversation that cannot be rendered
    |   +-- PlaceholderError       the number of <image> placeholders is not the number of pictures
    |   +-- ContextLengthError     prompt longer than the context
    +-- DataError                  a training sample or question that breaks the format

Commands print `str(error)` on one line and exit with `error.exit_code`, never with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlavaError(Exception):
    """Base of all errors that are the user's to mend: a cause, and a remedy where there is one."""

    code = "error"
    exit_code = 2

    def __init__(self, cause: str, *, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}" if self.remedy else self.cause


class UsageError(LlavaError):
    """A command or option that cannot be carried out."""

    code = "usage"


class ConfigError(LlavaError):
    """A configuration field holds a value it cannot have."""

    code = "config"

    @classmethod
    def of_field(cls, field: str, value: object, allowed: Iterable[str], *, source: str = "") -> ConfigError:
        """Name the field, its value, the allowed values and the closest of them; `source` says which file."""
        allowed = list(allowed)
        where = f" in {source}" if source else ""
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        return cls(
            f"{field} is {value!r}{where}, which is not known", remedy=f"{hint}Allowed: {', '.join(allowed)}."
        )


class DependencyError(LlavaError):
    """An optional package is needed and not installed."""

    code = "dependency"

    @classmethod
    def of_extra(cls, package: str, extra: str, purpose: str) -> DependencyError:
        """Say which package is missing, what for, and the exact command that installs it."""
        return cls(
            f"{package} is not installed, and {purpose} needs it",
            remedy=f"Run: pip install 'internvl-chat-llava[{extra}]'",
        )


class FileError(LlavaError):
    """A file is missing, unreadable, or not what its name says."""

    code = "file"


class ImageError(FileError):
    """Not a picture, or one that cannot be decoded."""

    code = "image"


class ImageLimitError(ImageError):
    """A picture over a limit: bytes, pixels, aspect ratio, frames, or too many pictures."""

    code = "image-limit"


class CheckpointError(LlavaError):
    """A folder that is no checkpoint, or not one that can be loaded."""

    code = "checkpoint"


class WeightsError(CheckpointError):
    """Tensors that are missing, unexpected, misshapen or corrupt."""

    code = "weights"


class TokenizerError(LlavaError):
    """A tokenizer that is missing or cannot be converted exactly."""

    code = "tokenizer"


class PromptError(LlavaError):
    """A conversation that cannot be rendered."""

    code = "prompt"


class PlaceholderError(PromptError):
    """The number of <image> placeholders is not the number of pictures."""

    code = "placeholder"


class ContextLengthError(PromptError):
    """The prompt with its pictures is longer than the model's context."""

    code = "context-length"


class DataError(LlavaError):
    """A training sample or benchmark question that breaks the format."""

    code = "data"
