"""Parts of the original, written from its protocol, among ours: old clients, old workers, old controllers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from llava.serve.client import AsyncServingClient
from llava.serve.heart_beats import HeartBeatOptions, HeartBeats
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.protocol import GenerateRequest
from tests.serve.network import (
    CONTROLLER,
    TOKEN,
    Network,
    OriginalWorker,
    add_controller,
    add_worker,
    asked,
    frames_of,
    registration,
    run,
    until,
)

OLD = "http://localhost:40000"


async def old_client(network: Network, body: dict[str, Any]) -> str:
    """Ask as the original's web server does: without a key, straight to the worker; returns what it shows."""
    async with network.client(token=None) as http:
        await http.post(f"{CONTROLLER}/refresh_all_workers")
        models = (await http.post(f"{CONTROLLER}/list_models")).json()["models"]
        assert body["model"] in models
        found = await http.post(f"{CONTROLLER}/get_worker_address", json={"model": body["model"]})
        address = found.json()["address"]
        headers = {"User-Agent": "LLaVA Client"}
        response = await http.post(f"{address}/worker_generate_stream", headers=headers, json=body)
    shown = ""
    for data in frames_of(response.content):
        if data["error_code"] == 0:
            shown = data["text"][len(body["prompt"]) :].strip()
        else:
            shown = data["text"] + f" (error_code: {data['error_code']})"
    return shown


def test_an_old_client_gets_its_answer_from_our_worker() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        worker = add_worker(network, 1)
        async with network.client() as http:
            await http.post(f"{CONTROLLER}/register_worker", json=registration(1, worker))
        assert registry.models() == ["tiny"]
        assert await old_client(network, asked()) == "two dogs"
        # The web server of InternVL sends two fields more.
        extra = {"max_input_tiles": 12, "org_images": []}
        assert await old_client(network, asked() | extra) == "two dogs"
        shown = await old_client(network, asked(images=["A" * 80]))
        assert shown.endswith("(error_code: 1)")
        assert "picture" in shown

    run(main())


def test_an_old_worker_is_let_in_only_by_its_address() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network, allowed_workers=frozenset({OLD}))
        old = OriginalWorker()
        async with network.client(token=None) as http:
            # It registers before it listens, with no token.
            response = await http.post(f"{CONTROLLER}/register_worker", json=old.registration(40000))
            assert (response.status_code, response.json()) == (200, None)
            other = await http.post(f"{CONTROLLER}/register_worker", json=old.registration(40001))
            assert other.status_code == 401
            network.apps[OLD] = old
            beat = {"worker_name": OLD, "queue_length": 1}
            response = await http.post(f"{CONTROLLER}/receive_heart_beat", json=beat)
            assert response.json() == {"exist": True}
        assert not registry.workers[0].knows_token
        assert await old_client(network, asked(model="old")) == "a cat"
        assert registry.models() == ["old"]

    run(main())


def test_our_client_takes_the_new_part_of_what_an_old_worker_repeats() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network, allowed_workers=frozenset({OLD}))
        network.apps[OLD] = old = OriginalWorker()
        async with network.client(token=None) as http:
            await http.post(f"{CONTROLLER}/register_worker", json=old.registration(40000))
        client = AsyncServingClient(CONTROLLER, transport=network)
        request = GenerateRequest("USER: hi ASSISTANT:", model="old", stop=("</s>",))
        for address in (None, OLD):
            pieces = [message.delta async for message in client.stream(request, address=address)]
            # A stop string that the old worker takes back was shown already, as in the original.
            assert "".join(piece or "" for piece in pieces).removesuffix("</s") == "a cat"
        assert old.requests[0]["stop"] == "</s>"
        assert old.requests[0]["deltas"] is True

    run(main())


def test_the_token_is_not_sent_to_old_workers() -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def old(scope: Any, receive: Any, send: Any) -> None:
            seen.append(dict(scope["headers"]).get(b"authorization"))
            await OriginalWorker()(scope, receive, send)

        network = Network()
        add_controller(network, allowed_workers=frozenset({OLD}))
        network.apps[OLD] = old
        async with network.client(token=None) as http:
            await http.post(f"{CONTROLLER}/register_worker", json=OriginalWorker().registration(40000))
            await http.post(f"{CONTROLLER}/refresh_all_workers")
            await http.post(f"{CONTROLLER}/worker_generate_stream", json=asked(model="old"))
        assert seen == [None, None]

    run(main())


class OriginalController:
    """A controller of the original, as far as a worker sees it: nothing is checked, nothing unregistered."""

    def __init__(self) -> None:
        self.workers: dict[str, Any] = {}
        self.paths: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        body = json.loads(request.content or b"{}")
        if request.url.path == "/register_worker":
            self.workers[body["worker_name"]] = body["worker_status"]
            return httpx.Response(200, json=None)
        if request.url.path == "/receive_heart_beat":
            return httpx.Response(200, json={"exist": body["worker_name"] in self.workers})
        return httpx.Response(404, json={"detail": "Not Found"})


def beating(
    transport: httpx.AsyncBaseTransport,
    lifecycle: Lifecycle,
    *,
    port: int = 1,
    network: Network | None = None,
) -> HeartBeats:
    """Return the heartbeats of a worker, quick enough for a test."""
    worker = add_worker(network or Network(), port)
    client = AsyncServingClient(CONTROLLER, token=TOKEN, transport=transport)
    options = HeartBeatOptions(interval_s=0.05, retry_s=0.05, least_s=0.0)
    return HeartBeats(client, f"http://localhost:{port}", worker.status, lifecycle, options)


def test_our_worker_lives_with_an_old_controller() -> None:
    async def main() -> None:
        old, lifecycle = OriginalController(), Lifecycle("ready")
        task = asyncio.ensure_future(beating(httpx.MockTransport(old), lifecycle).run())
        await until(lambda: len(old.paths) > 3)
        assert old.paths[:3] == ["/register_worker", "/receive_heart_beat", "/receive_heart_beat"]
        status = old.workers["http://localhost:1"]
        assert (status["model_names"], status["speed"], status["queue_length"]) == (["tiny"], 1, 0)
        old.workers.clear()
        await until(lambda: bool(old.workers))
        lifecycle.state = "draining"
        await task
        assert old.paths[-1] == "/unregister_worker"

    run(main())


def test_a_worker_registers_when_the_server_is_ready_and_leaves_when_it_drains() -> None:
    async def main() -> None:
        network, lifecycle = Network(), Lifecycle()
        registry = add_controller(network)
        task = asyncio.ensure_future(beating(network, lifecycle, network=network).run())
        await asyncio.sleep(0.15)
        assert registry.workers == []
        lifecycle.state = "ready"
        await until(lambda: bool(registry.workers))
        lifecycle.state = "draining"
        await task
        assert registry.workers == []
        assert registry.removals[-1].reason == "stopped"

    run(main())


def test_a_worker_comes_back_to_a_controller_that_was_restarted() -> None:
    async def main() -> None:
        network, lifecycle = Network(), Lifecycle("ready")
        registry = add_controller(network)
        task = asyncio.ensure_future(beating(network, lifecycle, network=network).run())
        await until(lambda: bool(registry.workers))
        del network.apps[CONTROLLER]
        await asyncio.sleep(0.2)
        again = add_controller(network)
        await until(lambda: bool(again.workers))
        lifecycle.state = "draining"
        await task

    run(main())


def test_a_wrong_token_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        network, lifecycle = Network(), Lifecycle("ready")
        add_controller(network)
        worker = add_worker(network, 1)
        client = AsyncServingClient(CONTROLLER, token="not-the-token-of-this", transport=network)
        options = HeartBeatOptions(interval_s=0.05, retry_s=0.05)
        beats = HeartBeats(client, "http://localhost:1", worker.status, lifecycle, options)
        task = asyncio.ensure_future(beats.run())
        await until(lambda: len(network.calls) > 3)
        lifecycle.state = "draining"
        await task

    run(main())
    warnings = [record.getMessage() for record in caplog.records if "heart_beats" in record.name]
    assert len(warnings) == 1
    assert "authentication" in warnings[0]
