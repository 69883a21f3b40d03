"""What can go wrong between us and a server, and the one RemoteError that tells it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

from llava.errors import RemoteError

MAX_SAID = 300
"""Characters of a server's answer that an error quotes."""

_REMEDIES = {
    400: "The request is not to the server's liking: check the model, the context length and the options.",
    401: "Give the API key of this server.",
    403: "The API key may not do this; check what it is allowed to.",
    404: "Check the URL (up to and with /v1) and the model's name.",
    405: "Check the URL: it must be that of an OpenAI-compatible API.",
    413: "The pictures are too large for this server; make them smaller or raise its limit.",
    422: "The server does not know an option or a part of the message; check what it supports.",
    429: "The server is overloaded or the quota is used up; use less concurrency, or try again later.",
}


@dataclass(eq=False)
class Fault(Exception):
    """One failed attempt."""

    what: str
    """A phrase that follows the URL: "does not answer"."""
    remedy: str
    said: str = ""
    """What the server said, in full."""
    is_passing: bool = False
    """Whether trying again can help."""
    retry_after_s: float | None = None
    """How long the server asks us to wait."""
    status: int | None = None
    """Of the response, when there was one."""

    def to_error(self, url: str, *, secret: str | None, num_attempts: int) -> RemoteError:
        """Return the error that people see; `secret` is kept out of it."""
        tried = f" (tried {num_attempts} times)" if num_attempts > 1 else ""
        said = shorten(self.said.replace(secret, "***") if secret else self.said)
        quoted = f": {said}" if said else ""
        return RemoteError(f"{url} {self.what}{tried}{quoted}", remedy=self.remedy, status=self.status)


def shorten(text: str) -> str:
    """Return `text` on one line, without control characters, at most MAX_SAID characters."""
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return plain if len(plain) <= MAX_SAID else plain[:MAX_SAID] + "..."


def status_fault(status: int, body: str, retry_after: str | None) -> Fault:
    """Return the fault of a response that is not 200."""
    if 300 <= status < 400:
        remedy = "Give the address that it leads to; redirects are not followed, for the API key's sake."
    elif status >= 500:
        remedy = "Look into the server's log."
    else:
        remedy = _REMEDIES.get(status, "See what the server says.")
    return Fault(
        f"answers with status {status}",
        remedy,
        said=message_of(body),
        is_passing=status == 429 or status >= 500,
        retry_after_s=_seconds(retry_after),
        status=status,
    )


def message_of(body: str) -> str:
    """Return the message inside a server's error body, or the body, without HTML tags."""
    try:
        found = json.loads(body)
    except ValueError:
        return re.sub(r"<[^>]*>", " ", body)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return None
