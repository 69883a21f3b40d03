"""What stands around gradio's routes, with an application in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse, StreamingResponse

from llava.serve.http.access import Access
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.stack import new_app, protect
from llava.serve.web.guard import PageGuard
from tests.serve.servers import live, wait_until


def add_routes(app: FastAPI) -> None:
    """Have gradio's heartbeat, and an answer on every other route."""

    async def heartbeat() -> StreamingResponse:
        async def beats() -> AsyncIterator[str]:
            while True:
                yield "data: ALIVE\n\n"
                await asyncio.sleep(60)

        return StreamingResponse(beats(), media_type="text/event-stream")

    async def anything() -> PlainTextResponse:
        return PlainTextResponse("here")

    app.add_api_route("/gradio_api/heartbeat/{session}", heartbeat, response_model=None)
    app.add_api_route("/{path:path}", anything, methods=["GET", "POST"], response_model=None)
    app.add_middleware(PageGuard)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/assets/index.js", 200),
        ("/v1/models", 200),
        ("/gradio_api/queue/join", 200),
        ("/gradio_api/file=picture.jpg", 200),
        ("/gradio_api/proxy=http://127.0.0.1:1/", 404),
        ("/gradio_api/vibe-edit", 404),
        ("/gradio_api/dev/reload", 404),
        ("/gradio_api/runs", 404),
        ("/gradio_api/run-history/buckets", 404),
        ("/gradio_api/process_recording", 404),
        ("/gradio_api/component_server", 404),
        ("/gradio_api/../gradio_api/vibe-edit", 404),
        ("/monitoring/summary", 404),
    ],
)
def test_only_the_routes_that_the_page_needs_exist(path: str, status: int) -> None:
    app = new_app()
    add_routes(app)
    stacked = protect(app, Access(), limits=Limits(), lifecycle=Lifecycle("ready"))

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(stacked)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    response = asyncio.run(get())
    assert response.status_code == status
    if status == 200:
        assert "connect-src 'self'" in response.headers["content-security-policy"]


def test_an_open_tab_is_no_work_that_a_stopping_server_waits_for() -> None:
    app, lifecycle = new_app(), Lifecycle("ready")

    async def drain() -> None:
        lifecycle.state = "draining"

    app.add_api_route("/drain", drain, methods=["POST"])
    add_routes(app)
    with (
        live(protect(app, Access(), limits=Limits(), lifecycle=lifecycle)) as client,
        client.stream("GET", "/gradio_api/heartbeat/abc") as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "data: ALIVE"
        assert lifecycle.num_running == 0
        client.post("/drain")
        assert [line for line in lines if line] == []  # it ends, and in order
        wait_until(lambda: lifecycle.num_running == 0)
