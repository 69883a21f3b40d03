"""Stands around gradio's routes: what browsers may load, which routes there are, and how idle tabs end.

gradio has routes that this page does not use (proxies, recordings, editing of its own source, histories of
runs); what is not listed here does not exist.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llava.errors import NotFoundError
from llava.serve.http.lifecycle import SCOPE_KEY, Lifecycle
from llava.serve.web.display import CONTENT_SECURITY_POLICY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_API: Final = "/gradio_api/"
_HEARTBEAT: Final = _API + "heartbeat/"
_ALLOWED: Final = (
    _HEARTBEAT,
    *(
        _API + name
        for name in (
            "app_id", "cancel", "file=", "info", "queue/data", "queue/join", "reset", "run/predict",
            "startup-events", "theme.css", "upload",
        )
    ),
)  # fmt: skip
_REFUSED: Final = ("/monitoring", "/login", "/logout", "/svelte", "/custom_component")
_HEADERS: Final = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)


class PageGuard:
    """Lets through what the page needs, with its policy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with a policy; raises NotFoundError."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(_REFUSED) or (path.startswith(_API) and not path.startswith(_ALLOWED)):
            raise NotFoundError("There is no such route", remedy="Check the address.")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        lifecycle = scope.get(SCOPE_KEY)
        if path.startswith(_HEARTBEAT) and isinstance(lifecycle, Lifecycle):
            await _until_draining(self._app, lifecycle, scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)


async def _until_draining(
    app: ASGIApp, lifecycle: Lifecycle, scope: Scope, receive: Receive, send: Send
) -> None:
    """Hold an open tab's heartbeat, which is no work: a server that drains ends it instead of waiting."""
    async with lifecycle.idling() as is_draining:
        draining = asyncio.ensure_future(is_draining.wait())

        async def receive_or_leave() -> Message:
            receiving = asyncio.ensure_future(receive())
            await asyncio.wait({receiving, draining}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            receiving.cancel()
            return {"type": "http.disconnect"}

        is_complete = False

        async def send_noted(message: Message) -> None:
            nonlocal is_complete
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await app(scope, receive_or_leave, send_noted)
            if is_draining.is_set() and not is_complete:  # gradio may have noticed, and ended it
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            draining.cancel()
