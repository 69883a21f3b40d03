"""Loading, ready, draining: what a server says before it can answer, and after it was told to stop.

`/health` says that the process lives, `/ready` that it takes requests; both answer at all times.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

from llava.errors import UnavailableError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

State = Literal["loading", "ready", "draining"]
HEALTH: Final = "/health"
READY: Final = "/ready"
SCOPE_KEY: Final = "llava.lifecycle"


class Lifecycle:
    """In which state a server is, and how many requests it works on. Of the event loop's thread alone."""

    def __init__(self, state: State = "loading") -> None:
        self._state: State = state
        self._is_draining = asyncio.Event()
        self.num_running = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def state(self) -> State:
        """In which state the server is."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        if state == "draining":
            self._is_draining.set()
        else:
            self._is_draining.clear()

    def begin(self) -> None:
        """Count a request."""
        self.num_running += 1
        self._is_idle.clear()

    def end(self) -> None:
        """A request is done."""
        self.num_running -= 1
        if not self.num_running:
            self._is_idle.set()

    @asynccontextmanager
    async def idling(self) -> AsyncIterator[asyncio.Event]:
        """Do not count a request that only waits; yields what is set when the server drains."""
        self.end()
        try:
            yield self._is_draining
        finally:
            self.begin()

    async def wait_until_idle(self) -> None:
        """Return when no request is worked on."""
        await self._is_idle.wait()


class LifecycleLayer:
    """Answers `/health` and `/ready`, and refuses other requests while the server is not ready."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and count; raises UnavailableError."""
        from starlette.responses import JSONResponse

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == HEALTH:
            await JSONResponse({"status": "ok", "state": self._lifecycle.state})(scope, receive, send)
            return
        self._check()
        if scope["type"] == "http" and scope["path"] == READY:
            await JSONResponse({"status": "ready"})(scope, receive, send)
            return
        scope[SCOPE_KEY] = self._lifecycle
        self._lifecycle.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.end()

    def _check(self) -> None:
        if self._lifecycle.state == "loading":
            raise UnavailableError("The server is still loading", remedy="Try again in a moment.")
        if self._lifecycle.state == "draining":
            raise UnavailableError("The server is about to stop", remedy="Ask another one, or try again.")
