"""How much a client may send, and how long it may take; the innermost layer, before the application.

A JSON body is read here to its end and parsed strictly, before anything else looks at it; other bodies
(uploads of the page) are counted as they pass. Headers and connections are bounded in `connection.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llava.errors import ConfigError, RequestError, RequestTimeoutError, ServerBusyError, TooLargeError
from llava.serve.http.strict_json import DEFAULT_MAX_DEPTH, DEFAULT_MAX_ITEMS, parse_strictly

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PARSED: Final = "llava.json"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them together, may cost a server."""

    max_body_bytes: int = 64 << 20
    """Of one request: two pictures of the largest size that base64 makes of a 50-megapixel photo."""
    max_waiting_bytes: int = 1 << 30
    """Of all JSON bodies that are held at the same time; over it, new ones are answered 429."""
    body_timeout_s: float = 60.0
    """From the first to the last byte of a body."""
    max_json_depth: int = DEFAULT_MAX_DEPTH
    max_json_items: int = DEFAULT_MAX_ITEMS
    """Commas and opening brackets in a JSON body."""
    max_header_bytes: int = 32 << 10
    """Request line and headers together."""
    header_timeout_s: float = 20.0
    """From connecting, or from the first byte of a later request, to the end of its headers."""
    keep_alive_s: int = 15
    """How long a connection may be idle between two requests."""
    write_timeout_s: float = 30.0
    """How long a client may leave what it was sent unread before it is cut off."""
    max_connections: int = 512
    """Open at the same time; one more is answered 429 and closed."""

    @classmethod
    def with_client_timeout(cls, seconds: float | None) -> Limits:
        """Return the limits with one time for headers, bodies and unread answers; None keeps theirs."""
        if seconds is None:
            return cls()
        return cls(body_timeout_s=seconds, header_timeout_s=seconds, write_timeout_s=seconds)

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} is {value!r}", remedy="It must be above 0.")


def add_limit_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare --client-timeout-s."""
    parser.add_argument(
        "--client-timeout-s",
        type=float,
        metavar="SECONDS",
        help="how long a client may take to send its headers (20), its body (60), and to read (30)",
    )


class BodyLayer:
    """Bounds the body of every request, and parses it where it is JSON."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._held = _Held(limits.max_waiting_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with a body that is bounded.

        Raises TooLargeError, RequestTimeoutError, ServerBusyError, RequestError.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_size_of_headers(scope)
        headers = [(name, value) for name, value in scope["headers"] if name.startswith((b"content-", b"tr"))]
        self._check_framing(headers)
        bounded = _BoundedBody(receive, self._limits)
        if not _is_json(headers):
            await self._app(scope, bounded.receive, send)
            return
        with self._held.share() as take:
            data = await bounded.read(take)
            if data:
                scope[_PARSED] = parse_strictly(
                    data, max_depth=self._limits.max_json_depth, max_items=self._limits.max_json_items
                )
            await self._app(scope, _replay(data, receive), send)

    def _check_size_of_headers(self, scope: Scope) -> None:
        # Headers that arrive at one stroke are parsed whatever their size.
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if num_bytes + len(scope["path"]) + len(scope["query_string"]) > self._limits.max_header_bytes:
            raise TooLargeError(
                f"the headers are over the limit of {self._limits.max_header_bytes} bytes",
                remedy="Send smaller ones.",
            )

    def _check_framing(self, headers: list[tuple[bytes, bytes]]) -> None:
        lengths = [value for name, value in headers if name == b"content-length"]
        if lengths and any(name == b"transfer-encoding" for name, _ in headers):
            # Two programs could see the body end at different places.
            raise RequestError("the request gives its length twice over", remedy="Send Content-Length alone.")
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
            raise RequestError("the body is compressed", remedy="Send it as it is.")
        if lengths and int(lengths[0]) > self._limits.max_body_bytes:
            raise _too_large(self._limits)


class _Held:
    """The bytes of bodies that are in memory at this moment."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes bytes, all of which are given back at the end."""
        own = 0

        def take(num_bytes: int) -> None:
            nonlocal own
            if self._num_bytes + num_bytes > self._max_bytes:
                raise ServerBusyError("too many large requests at once", remedy="Try again later.")
            own += num_bytes
            self._num_bytes += num_bytes

        try:
            yield take
        finally:
            self._num_bytes -= own


class _BoundedBody:
    """Counts what arrives and how long it takes."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._num_bytes = 0
        self._deadline = time.monotonic() + limits.body_timeout_s
        self._is_complete = False

    async def receive(self) -> Message:
        """Return the next message; raises TooLargeError and RequestTimeoutError."""
        if self._is_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise RequestTimeoutError(
                f"the body did not arrive within {self._limits.body_timeout_s:g} seconds",
                remedy="Send it faster, or send less.",
            ) from None
        self._num_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits)
        return message

    async def read(self, take: Callable[[int], None]) -> bytes:
        """Return the whole body; `take` is told of its parts and may refuse them.

        Raises RequestError when the client leaves before the end.
        """
        body = bytearray()
        while not self._is_complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client left before the end of its request")
            take(len(message.get("body", b"")))
            body += message.get("body", b"")
        return bytes(body)


def _too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(
        f"the body is over the limit of {limits.max_body_bytes} bytes",
        remedy="Send less, smaller pictures above all.",
    )


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    kinds = [value.split(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
    return any(kind == b"application/json" or kind.endswith(b"+json") for kind in kinds)


def _replay(data: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, and then what follows it."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": data, "more_body": False}

    return replayed


def json_body(request: Request) -> Any:
    """Return the strictly parsed JSON of a request; raises RequestError where there is none.

    Only what declares itself JSON is taken: a form of some web page cannot do that without asking first.
    """
    if _PARSED not in request.scope:
        raise RequestError(
            "the request has no JSON body", remedy="Send one, with Content-Type: application/json."
        )
    return request.scope[_PARSED]
