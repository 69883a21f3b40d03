"""The controller's routes: the original's, all POST with JSON, and `unregister_worker` and `list_workers`.

What is registered or heard of a worker counts only with the token, whatever the server's access rules are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava.log import get_logger
from llava.serve import fields
from llava.serve.dispatch import HOPS_HEADER, Dispatcher, DispatchOptions
from llava.serve.frames import FrameResponse, Frames
from llava.serve.http.limits import json_body
from llava.serve.http.request_id import request_id_of
from llava.serve.http.secret_file import check_token
from llava.serve.protocol import MAX_NAME_CHARS, GenerateRequest, Registration, address_of
from llava.serve.registry import Registry

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

_logger = get_logger(__name__)

_MAX_SWEEP_S = 5.0


def routes_of(
    registry: Registry, options: DispatchOptions, *, transport: httpx.AsyncBaseTransport | None
) -> FastAPI:
    """Return an application with the controller's routes; its lifespan sweeps out silent workers."""
    from fastapi import FastAPI

    dispatcher = Dispatcher(registry, options, transport=transport)
    routes = _Routes(registry, dispatcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(sweep(registry))
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await dispatcher.close()

    # Without FastAPI's own pages, which load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for path, handler in {
        "/register_worker": routes.register_worker,
        "/unregister_worker": routes.unregister_worker,
        "/receive_heart_beat": routes.receive_heart_beat,
        "/refresh_all_workers": routes.refresh_all_workers,
        "/list_models": routes.list_models,
        "/list_workers": routes.list_workers,
        "/get_worker_address": routes.get_worker_address,
        "/worker_get_status": routes.worker_get_status,
        "/worker_generate_stream": routes.worker_generate_stream,
    }.items():
        app.add_route(path, handler, methods=["POST"])
    return app


async def sweep(registry: Registry) -> None:
    """Remove workers whose heartbeat is overdue, again and again."""
    while True:
        await asyncio.sleep(min(_MAX_SWEEP_S, registry.options.expiry_s / 3))
        for removal in registry.remove_expired():
            _logger.warning("worker %s removed: %s", removal.address, removal.reason)


class _Routes:
    """One method for each route."""

    def __init__(self, registry: Registry, dispatcher: Dispatcher) -> None:
        self._registry = registry
        self._dispatcher = dispatcher

    async def register_worker(self, request: Request) -> Response:
        registration = Registration.from_json(_object(request))
        await self._dispatcher.register(registration, has_token=self._has_token(request))
        return JSONResponse(None)

    async def unregister_worker(self, request: Request) -> Response:
        address = address_of(_object(request))
        self._dispatcher.check_worker(address, has_token=self._has_token(request))
        if self._registry.remove(address, "stopped"):
            _logger.info("worker %s stopped", address)
        return JSONResponse(None)

    async def receive_heart_beat(self, request: Request) -> Response:
        body = _object(request)
        address = address_of(body)
        self._dispatcher.check_worker(address, has_token=self._has_token(request))
        queue_length = fields.whole(body, "queue_length", high=1 << 30)
        return JSONResponse({"exist": self._registry.heart_beat(address, queue_length)})

    async def refresh_all_workers(self, _: Request) -> Response:
        await self._dispatcher.refresh()
        return JSONResponse(None)

    async def list_models(self, _: Request) -> Response:
        return JSONResponse({"models": self._registry.models(), "templates": self._registry.templates()})

    async def list_workers(self, request: Request) -> Response:
        """Addresses and reasons are for operators: the token is needed on loopback too."""
        check_token(request.scope, self._dispatcher.options.token)
        now = self._registry.clock()
        workers: list[dict[str, Any]] = [
            {
                "address": worker.address,
                **worker.status.to_json(),
                "last_heart_beat_s": round(now - worker.last_heart_beat, 3),
            }
            for worker in self._registry.workers
        ]
        removed = [
            {
                "address": removal.address,
                "model_names": list(removal.model_names),
                "reason": removal.reason,
                "ago_s": round(now - removal.at, 3),
            }
            for removal in self._registry.removals
        ]
        return JSONResponse({"workers": workers, "removed": removed})

    async def get_worker_address(self, request: Request) -> Response:
        body = _object(request)
        model = fields.text(body, "model", max_length=MAX_NAME_CHARS)
        affinity = fields.text(body, "affinity", default="", max_length=64)
        worker = self._registry.choose(model, affinity=affinity)
        return JSONResponse({"address": worker.address if worker is not None else ""})

    async def worker_get_status(self, _: Request) -> Response:
        return JSONResponse(self._registry.status().to_json())

    async def worker_generate_stream(self, request: Request) -> Response:
        # Read here: the response listens at the same place for the client's leaving.
        return FrameResponse(self._frames(request, await request.body()))

    async def _frames(self, request: Request, body: bytes) -> Frames:
        """Check the request inside the stream: what is wrong with it is said in a frame too."""
        wanted = GenerateRequest.from_json(_object(request))
        hops = request.headers.get(HOPS_HEADER, "0")
        frames = self._dispatcher.frames(
            wanted,
            body,
            request_id=request_id_of(request.scope),
            num_hops=int(hops) if hops.isascii() and hops.isdigit() and len(hops) < 4 else 0,
        )
        try:
            async for frame in frames:
                yield frame
        finally:
            await frames.aclose()

    def _has_token(self, request: Request) -> bool:
        """Say whether the sender proved the token; a wrong one is refused at once."""
        if "authorization" not in request.headers:
            return False
        check_token(request.scope, self._dispatcher.options.token)
        return True


def _object(request: Request) -> dict[str, Any]:
    return fields.as_object(json_body(request))
