"""A worker's two routes, the original's: `/worker_get_status` and `/worker_generate_stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava.serve import fields
from llava.serve.frames import FrameResponse, Frames
from llava.serve.http.limits import json_body
from llava.serve.protocol import GenerateRequest

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava.serve.heart_beats import HeartBeats
    from llava.serve.worker import ModelWorker

_GOODBYE_S = 5.0


def routes_of(worker: ModelWorker, heart_beats: HeartBeats | None = None) -> FastAPI:
    """Return an application with a worker's routes; its lifespan keeps the worker known to its controller."""
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if heart_beats is None:
            yield
            return
        worker.when_changed = heart_beats.nudge
        beating = asyncio.create_task(heart_beats.run())
        yield
        if not heart_beats.has_begun:
            beating.cancel()
        with suppress(asyncio.TimeoutError, asyncio.CancelledError):
            # It says goodbye on its own once the server drains.
            await asyncio.wait_for(beating, _GOODBYE_S)

    async def get_status(_: Request) -> Response:
        return JSONResponse(worker.status().to_json())

    async def generate_stream(request: Request) -> Response:
        return FrameResponse(_frames(worker, request))

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_route("/worker_get_status", get_status, methods=["POST"])
    app.add_route("/worker_generate_stream", generate_stream, methods=["POST"])
    return app


async def _frames(worker: ModelWorker, request: Request) -> Frames:
    """Read the request inside the stream: what is wrong with it is said in a frame too."""
    wanted = GenerateRequest.from_json(fields.as_object(json_body(request)))
    frames = worker.frames(wanted)
    try:
        async for frame in frames:
            yield frame
    finally:
        await frames.aclose()
