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
    +-- EngineError                an engine that cannot go on with a request: closed, out of memory
    |   +-- EngineBusyError        too many requests are waiting already; try again later
    |   +-- RemoteError            an endpoint elsewhere that does not answer, or not as it should
    +-- ServingError               a server that does not carry out a request
    |   +-- RequestError           a request that is not as it should be
    |   +-- AuthenticationError    the key or token is missing or wrong
    |   +-- AccessError            a host or page that the server is not open to
    |   +-- NotFoundError          no such route or model
    |   +-- MethodError            a route that is not called like this
    |   +-- RequestTimeoutError    a request that did not arrive in time
    |   +-- TooLargeError          a request over a limit of bytes, depth or items
    |   +-- ServerBusyError        too many connections or requests; try again later
    |   +-- UnavailableError       still loading, or about to stop; try again later
    |   +-- AnswerTimeoutError     an answer that took too long
    |   +-- InternalError          a fault of the server itself; its log knows more
    |   +-- RegistrationError      a worker that cannot be called at the address it gives
    |   +-- WorkerLostError        a worker that cannot be reached, or broke off in the middle of an answer
    |   +-- ReportedError          what a controller or worker said is wrong, with the code it gave
    +-- TrainingError              a run that cannot go on: its loss is no longer a number
    +-- RankError                  a process of a distributed run that died, hangs or cannot be reached

Commands print `str(error)` on one line and exit with `error.exit_code`, never with a traceback.
`error.docs` names the page of the documentation that has causes and remedies of the code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

PAGES: Final = "docs/errors"
"""Where the page of each code is, from the root of the project."""


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

    @property
    def docs(self) -> str:
        """The page about the code, from the root of the project."""
        return f"{PAGES}/{self.code}.md"


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
    """A training sample or benchmark question that breaks the format.

    where: file and place in it, as "x.jsonl line 12"; part of the cause, and empty where nobody knows it.
    """

    code = "data"

    def __init__(self, cause: str, *, remedy: str = "", where: str = "") -> None:
        super().__init__(f"{where}: {cause}" if where else cause, remedy=remedy)
        self.where = where


class RankError(LlavaError):
    """A process of a distributed run died, hangs, or cannot be reached."""

    code = "rank"


class TrainingError(LlavaError):
    """A training run cannot go on."""

    code = "training"


class EngineError(LlavaError):
    """An engine cannot go on with a request: it was closed, or its device is out of memory."""

    code = "engine"


class EngineBusyError(EngineError):
    """Too many requests are waiting already."""

    code = "engine-busy"


class RemoteError(EngineError):
    """An endpoint elsewhere cannot be reached, refuses, or answers nonsense.

    status: of the HTTP response that refuses; None where there was none, or another reason.
    """

    code = "remote"

    def __init__(self, cause: str, *, remedy: str = "", status: int | None = None) -> None:
        super().__init__(cause, remedy=remedy)
        self.status = status


class ServingError(LlavaError):
    """A server does not carry out a request."""

    code = "serving"


class RequestError(ServingError):
    """A request is not as it should be: broken JSON, or a field with a value it cannot have."""

    code = "request"


class AuthenticationError(ServingError):
    """The key or token of a request is missing or wrong."""

    code = "authentication"


class AccessError(ServingError):
    """A request for a host name, or from a web page, that the server is not open to."""

    code = "access"


class NotFoundError(ServingError):
    """There is no such route, or no model of that name."""

    code = "not-found"


class MethodError(ServingError):
    """A route is called by a method that it does not have."""

    code = "method"


class RequestTimeoutError(ServingError):
    """A request did not arrive in time."""

    code = "request-timeout"


class TooLargeError(ServingError):
    """A request is over a limit of bytes, depth or items."""

    code = "too-large"


class ServerBusyError(ServingError):
    """The server has too many connections or requests at this moment."""

    code = "server-busy"


class UnavailableError(ServingError):
    """The server is still loading, or about to stop."""

    code = "unavailable"


class AnswerTimeoutError(ServingError):
    """An answer took longer than the server allows."""

    code = "answer-timeout"


class InternalError(ServingError):
    """A fault of the server itself. Its log has the details, under the request id."""

    code = "internal"


class RegistrationError(ServingError):
    """A worker cannot be called at the address it gives, or another one answers there."""

    code = "registration"


class WorkerLostError(ServingError):
    """A worker cannot be reached, or broke off in the middle of an answer."""

    code = "worker-lost"


class ReportedError(ServingError):
    """A controller or worker says what is wrong; `code` is the one that it gave.

    reported_code: has a default only because errors are made from their cause alone when they are unpickled.
    error_number: the original's `error_code`; 1 where the answer was no stream.
    request_id: under which their logs know more; "" where they do not say.
    """

    code = "reported"

    def __init__(
        self,
        cause: str,
        *,
        remedy: str = "",
        reported_code: str = code,
        error_number: int = 1,
        request_id: str = "",
    ) -> None:
        super().__init__(cause, remedy=remedy)
        self.code = reported_code
        self.error_number = error_number
        self.request_id = request_id

    @property
    def docs(self) -> str:
        """The page about the code; that of "reported" where no class here has the code."""
        known = {kind.code for kind in classes()}
        return f"{PAGES}/{self.code if self.code in known else ReportedError.code}.md"


def classes(base: type[LlavaError] = LlavaError) -> list[type[LlavaError]]:
    """Return every class of the tree below `base`, and `base` itself, bases first."""
    return [base, *(deeper for child in base.__subclasses__() for deeper in classes(child))]
