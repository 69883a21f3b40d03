"""An HTTP response made of frames, for workers and controllers: `Frames` in, a NUL-framed body out.

What the original leaves open is decided here. A client that goes away ends the answer at once. While nothing
comes, a lone NUL is sent from time to time, which the original's clients skip as an empty frame: their read
timeouts (5 and 10 s) then say something about the connection and nothing about a long prompt. An error before
the first frame gives the response its status; the body says the same as a frame, since the original's clients
read nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from llava.errors import LlavaError, NotFoundError, WorkerLostError
from llava.serve.http.errors import as_llava_error, error_fields, log_error, treatment_of
from llava.serve.http.request_id import request_id_of
from llava.serve.protocol import ErrorNumber, StreamMessage

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Frames = AsyncGenerator[bytes, None]
"""Frames with their NULs; errors are raised in it."""

_FIRST_WAIT_S = 2.0
"""An error that comes this early still gets its own status."""
KEEP_ALIVE_S = 3.0
"""Below the shortest timeout of the original's parts, 5 s."""
_KEEP_ALIVE = b"\0"
_MAX_HELD = 64
"""Frames that wait for a slow client."""


class FrameOptions(NamedTuple):
    """How often something is sent while nothing comes."""

    first_wait_s: float = _FIRST_WAIT_S
    keep_alive_s: float = KEEP_ALIVE_S


class FrameResponse(Response):
    """Sends frames as they come, those that came together in one piece; closes their source at the end."""

    media_type = "application/octet-stream"

    def __init__(self, frames: Frames, options: FrameOptions | None = None) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._options = options or FrameOptions()
        self._has_begun = False
        self._arrived: list[bytes] = []
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # Length is not known: the body is sent in chunks.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client leaves."""
        pulling = asyncio.ensure_future(self._pull())
        pulling.add_done_callback(lambda _: self._has_news.set())
        sending = asyncio.ensure_future(self._send_all(send, pulling, request_id_of(scope)))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving, pulling):
                task.cancel()
            await asyncio.gather(sending, leaving, pulling, return_exceptions=True)
            await self._frames.aclose()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _pull(self) -> None:
        """Take frames from their source; not many more than the client takes."""
        async for frame in self._frames:
            self._arrived.append(frame)
            self._has_news.set()
            if len(self._arrived) >= _MAX_HELD:
                self._has_room.clear()
                await self._has_room.wait()

    async def _send_all(self, send: Send, pulling: asyncio.Future[None], request_id: str) -> None:
        loop = asyncio.get_running_loop()
        patience_s = self._options.first_wait_s
        while True:
            # One timer a piece, and not one task: many answers share this thread.
            timer = loop.call_later(patience_s, self._has_news.set)
            await self._has_news.wait()
            timer.cancel()
            self._has_news.clear()
            patience_s = self._options.keep_alive_s
            is_over = pulling.done()
            if self._arrived:
                data = b"".join(self._arrived)
                self._arrived.clear()
                self._has_room.set()
                await self._send(send, data)
            elif not is_over:
                await self._send(send, _KEEP_ALIVE)
            if is_over:
                break
        if (error := pulling.exception()) is not None:
            await self._send_error(send, error, request_id)
        await self._send(send, b"", is_last=True)

    async def _send_error(self, send: Send, error: BaseException, request_id: str) -> None:
        """Say what went wrong; the status too, where it was not sent yet."""
        if not isinstance(error, Exception):
            raise error
        known = as_llava_error(error, request_id)
        log_error(known, request_id)
        treatment = treatment_of(known)
        if not self._has_begun:
            self.status_code = treatment.status
            if treatment.retry_after_s is not None:
                self.headers["Retry-After"] = str(treatment.retry_after_s)
        await self._send(send, error_message(known, request_id).to_frame())

    async def _send(self, send: Send, data: bytes, *, is_last: bool = False) -> None:
        if not self._has_begun:
            self._has_begun = True
            head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(head)
        await send({"type": "http.response.body", "body": data, "more_body": not is_last})


def error_message(error: LlavaError, request_id: str) -> StreamMessage:
    """Return the frame that tells an error: in `text` for the original's clients, in fields for ours."""
    told = error_fields(error, request_id)
    words = ". ".join(part for part in (told["message"], told["remedy"]) if part)
    return StreamMessage(
        text=words,
        error_code=number_of(error),
        code=told["code"],
        cause=told["message"],
        remedy=told["remedy"],
        docs=told["docs"],
        request_id=request_id,
    )


def number_of(error: LlavaError) -> ErrorNumber:
    """Return the original's number for an error."""
    if isinstance(error, NotFoundError):
        return ErrorNumber.NO_WORKER
    if isinstance(error, WorkerLostError):
        return ErrorNumber.UNREACHABLE
    return ErrorNumber.WORKER


async def _left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
