"""A line in the log file for each request: what was asked of which route, the status, the time, its name.

`POST /v1/chat/completions 200 1234 ms request req-...`. Neither what was sent nor who sent it is in it.
"""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING, Final

from llava.log import FILE_ONLY, get_logger
from llava.serve.http.request_id import request_id_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_logger = get_logger(__name__)
_MAX_CHARS: Final = 100
_PLAIN = re.compile(r"[\w./-]*", re.ASCII)


class RequestLogLayer:
    """Logs every request when it has ended; inside the layer that names them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, what = perf_counter(), f"{plain(scope['method'])} {plain(scope['path'])}"
        status, is_complete = "no status", False

        async def send_noted(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            ms = 1000 * (perf_counter() - begin)
            broken = "" if is_complete else " broken off"
            name = request_id_of(scope)
            _logger.info("%s %s%s %.0f ms request %s", what, status, broken, ms, name, extra=FILE_ONLY)


def plain(text: str) -> str:
    """Return a method or path as far as it is plain: behind it can be the name of a picture, or anything."""
    match = _PLAIN.match(text[:_MAX_CHARS])
    found = match[0] if match is not None else ""
    return found if found == text else f"{found}..."
