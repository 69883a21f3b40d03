"""Secrets in private files: the token that the processes of one machine share, and the key of a server.

Controller and workers of one user read the same file, so the original's commands need no new option; another
machine is given a copy, by `--token-file` or the variable below.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llava.errors import FileError
from llava.serve.http.access import check_key, values_of

if TYPE_CHECKING:
    from starlette.types import Scope

TOKEN_FILE_VARIABLE: Final = "LLAVA_TOKEN_FILE"
_MIN_LENGTH = 16
_MAX_BYTES = 4096


def state_folder() -> Path:
    """Return where this user's secrets lie unless told otherwise."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "llava"


def token_file(given: str | os.PathLike[str] | None = None) -> Path:
    """Return where the shared token lies: the option's place, the variable's, or the user's own."""
    place = given or os.environ.get(TOKEN_FILE_VARIABLE)
    return Path(place) if place else state_folder() / "token"


def shared_token(given: str | os.PathLike[str] | None = None) -> str:
    """Return the token that the processes of this machine share; the first of them draws it.

    Raises FileError for a file that others can read, or that holds no token.
    """
    return read_or_create(token_file(given))


def token_headers(token: str) -> dict[str, str]:
    """Return the headers by which a process proves that it knows the token."""
    return {"Authorization": f"Bearer {token}"}


def check_token(scope: Scope, token: str) -> None:
    """Raise AuthenticationError unless a request proves that its sender knows the token."""
    check_key(values_of(scope, b"authorization"), (token,))


def read_or_create(path: Path) -> str:
    """Return the secret in a file, or draw one into it; of two processes at once, both get the same."""
    if not path.exists():
        _create(path)
    return read_secret(path)


def read_secret(path: Path) -> str:
    """Return the secret in a file; raises FileError where it is missing, empty or open to others."""
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise FileError(
            f"{path} cannot be read: {error.strerror}", remedy="Check the path and its permissions."
        ) from None
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
        raise FileError(f"{path} holds a secret and others can read it", remedy=f"Run: chmod 600 {path}")
    secret = data.decode("utf-8", "replace").strip()
    if not (_MIN_LENGTH <= len(secret) <= _MAX_BYTES and secret.isascii() and secret.isprintable()):
        raise FileError(
            f"{path} holds no secret", remedy=f"Write at least {_MIN_LENGTH} letters or digits on one line."
        )
    return secret


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkstemp makes it private; a link appears whole or not at all, and never over another one.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(secrets.token_urlsafe(32) + "\n")
            os.link(name, path)
        except FileExistsError:
            return  # another process was faster, and its secret is the one
        finally:
            os.unlink(name)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written: {error.strerror}", remedy="Give another place for it."
        ) from None
