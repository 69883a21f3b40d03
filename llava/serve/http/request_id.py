"""The name of a request, the same in its answer, in errors and in the log.

The outermost layer of every server. A name that comes with the request is kept when it is harmless, so that
a request has one name on its way over several servers.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-Id"
SCOPE_KEY: Final = "llava.request_id"
UNKNOWN: Final = "unknown"
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
"""Nothing that a server sends is run or shown as another kind than it says."""
_SAFE = re.compile(r"[A-Za-z0-9_-]{8,64}", re.ASCII)


def new_request_id() -> str:
    """Draw a name."""
    return f"req-{secrets.token_hex(8)}"


def request_id_of(scope: Scope) -> str:
    """Return the name of the request of an ASGI scope."""
    name: str = scope.get(SCOPE_KEY, UNKNOWN)
    return name


class RequestIdLayer:
    """Names every request, and says the name in the answer's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with a name."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        name = _given(scope) or new_request_id()
        scope[SCOPE_KEY] = name

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    *message.get("headers", ()),
                    (HEADER.lower().encode(), name.encode()),
                    _NO_SNIFFING,
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_named)


def _given(scope: Scope) -> str | None:
    """Return the name that came with the request, if it came once and is harmless."""
    wanted = HEADER.lower().encode()
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    return values[0] if len(values) == 1 and _SAFE.fullmatch(values[0]) else None
