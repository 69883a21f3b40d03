"""A connection of uvicorn with the bounds that uvicorn leaves open: number, slow headers, silent readers.

uvicorn waits for the headers of a new connection, and for a client to read, for as long as it takes. What is
refused here never reaches the application.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava.errors import LlavaError, RequestError, ServerBusyError
from llava.log import get_logger
from llava.serve.http.errors import error_fields, treatment_of
from llava.serve.http.request_id import HEADER, new_request_id

if TYPE_CHECKING:
    from llava.serve.http.limits import Limits

_logger = get_logger(__name__)


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """Return a protocol for uvicorn's `http` setting that holds `limits`."""
    return type("LimitedConnection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    """One connection."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(
                ServerBusyError("The server has too many connections", remedy="Try again in a moment.")
            )
            return
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._header_timer)
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._write_timer)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what is no HTTP, or has headers over the limit."""
        self._refuse(
            RequestError(
                "The request is no valid HTTP, or its headers are too large", remedy="Send smaller headers."
            )
        )

    def _watch_headers(self) -> None:
        """Start the clock where headers are awaited, and stop it once they are there."""
        is_new = self.cycle is None
        is_awaited = self.conn.their_state is h11.IDLE and (is_new or bool(self.conn.trailing_data[0]))
        if not is_awaited:
            _cancel(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.limits.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        # Nothing was asked, so there is nothing to answer.
        self.transport.abort()

    def _cut_off(self) -> None:
        _logger.info("a client did not read for %g seconds and was cut off", self.limits.write_timeout_s)
        self.transport.abort()

    def _refuse(self, error: LlavaError) -> None:
        name = new_request_id()
        _logger.info("request %s: %s", name, error)
        treatment = treatment_of(error)
        body = json.dumps({"error": error_fields(error, name)}).encode()
        lines = [
            f"HTTP/1.1 {treatment.status} {type(error).__name__}",
            "content-type: application/json",
            "x-content-type-options: nosniff",
            f"content-length: {len(body)}",
            f"{HEADER.lower()}: {name}",
            "connection: close",
        ]
        if treatment.retry_after_s is not None:
            lines.append(f"retry-after: {treatment.retry_after_s}")
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
