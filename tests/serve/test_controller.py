"""Controller and workers in one process: who may register, who is asked, and what if one is lost."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llava.errors import NotFoundError, RegistrationError, ReportedError, WorkerLostError
from llava.serve.client import AsyncServingClient
from llava.serve.dispatch import MAX_HOPS, Dispatcher, DispatchOptions
from llava.serve.protocol import ErrorNumber, GenerateRequest, Registration, WorkerStatus
from llava.serve.registry import Registry
from llava.serve.request_queue import QueueOptions
from tests.serve.network import (
    CONTROLLER,
    TOKEN,
    Network,
    WordEngine,
    add_controller,
    add_worker,
    asked,
    frames_of,
    registration,
    run,
)

METADATA_SERVICE = "http://169.254.169.254"


async def post(network: Network, path: str, body: object = None, *, token: str | None = TOKEN) -> Any:
    async with network.client(token=token) as client:
        return await client.post(CONTROLLER + path, json=body)


async def register(network: Network, body: dict[str, Any], *, token: str | None = TOKEN) -> httpx.Response:
    response: httpx.Response = await post(network, "/register_worker", body, token=token)
    return response


def test_a_registered_worker_is_listed_found_and_asked() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        worker = add_worker(network, 1)
        response = await register(network, registration(1, worker))
        assert (response.status_code, response.json()) == (200, None)
        listed = (await post(network, "/list_models")).json()
        assert listed == {"models": ["tiny"], "templates": {"tiny": "vicuna_v1"}}
        found = await post(network, "/get_worker_address", {"model": "tiny"})
        assert found.json() == {"address": "http://localhost:1"}
        none = await post(network, "/get_worker_address", {"model": "other"})
        assert none.json() == {"address": ""}
        answer = await post(network, "/worker_generate_stream", asked())
        assert frames_of(answer.content)[-1] == {"text": asked()["prompt"] + "two dogs", "error_code": 0}

    run(main())


@pytest.mark.parametrize("token", [None, "wrong-token-of-this-test-", "", "\u00e9"])
@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        ("http://localhost:1", 401, "authentication"),
        ("http://[::1]:80", 401, "authentication"),
        (METADATA_SERVICE, 400, "request"),
        ("http://2130706433", 400, "request"),
    ],
)
def test_without_the_token_nothing_is_contacted(
    token: str | None, address: str, status: int, code: str
) -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        add_worker(network, 1)
        body = {"worker_name": address, "check_heart_beat": False, "worker_status": None}
        headers = httpx.Headers({} if token is None else {"Authorization": f"Bearer {token}"}, "utf-8")
        async with network.client(token=None) as client:
            response = await client.post(f"{CONTROLLER}/register_worker", json=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert registry.workers == []
        assert network.calls == [f"{CONTROLLER}/register_worker"]

    run(main())


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd", "gopher://x:70", "http://a\\@b", "http://u:p@h", METADATA_SERVICE, "http://127.1",
        "http://0177.0.0.1:1", "http://[::ffff:127.0.0.1]:1", "http://0.0.0.0:1",
    ],
)  # fmt: skip
def test_with_the_token_an_address_that_leads_elsewhere_is_refused(address: str) -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        body = {"worker_name": address, "check_heart_beat": False, "worker_status": None}
        response = await register(network, body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "request")
        assert network.calls == [f"{CONTROLLER}/register_worker"]

    run(main())


def test_heartbeats_and_goodbyes_need_the_token_too() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        worker = add_worker(network, 1)
        await register(network, registration(1, worker))
        beat = {"worker_name": "http://localhost:1", "queue_length": 3}
        for path in ("/receive_heart_beat", "/unregister_worker"):
            assert (await post(network, path, beat, token=None)).status_code == 401
        assert (await post(network, "/list_workers", token=None)).status_code == 401
        assert (await post(network, "/receive_heart_beat", beat)).json() == {"exist": True}
        assert registry.workers[0].status.queue_length == 3
        assert (await post(network, "/unregister_worker", beat)).json() is None
        assert (await post(network, "/receive_heart_beat", beat)).json() == {"exist": False}
        listed = (await post(network, "/list_workers")).json()
        assert listed["workers"] == []
        assert listed["removed"][0]["reason"] == "stopped"

    run(main())


def test_a_worker_that_cannot_be_called_back_is_refused_with_a_remedy() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        worker = add_worker(network, 1)
        response = await register(network, registration(9, worker))
        assert response.status_code == 409
        assert "--worker-address" in response.json()["error"]["remedy"]
        assert registry.workers == []

    run(main())


def test_two_workers_cannot_have_one_address() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        first, second = add_worker(network, 1, name="first"), add_worker(network, 2, name="second")
        assert (await register(network, registration(1, first))).status_code == 200
        response = await register(network, registration(1, second))
        assert response.status_code == 409
        assert "Another worker answers" in response.json()["error"]["message"]
        assert registry.models() == ["first"]

    run(main())


def test_a_status_that_is_not_given_is_asked_for() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        add_worker(network, 1)
        await register(network, registration(1))
        assert registry.models() == ["tiny"]

    run(main())


def test_refreshing_drops_the_dead_and_takes_what_the_living_say() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        for port in (1, 2):
            await register(network, registration(port, add_worker(network, port, name=f"model-{port}")))
        del network.apps["http://localhost:1"]
        add_worker(network, 2, name="renamed")
        assert (await post(network, "/refresh_all_workers")).json() is None
        assert registry.models() == ["renamed"]
        assert "does not answer" in registry.removals[0].reason

    run(main())


def test_no_worker_is_one_error_and_then_the_end() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        response = await post(network, "/worker_generate_stream", asked(model="nobody"))
        frames = frames_of(response.content)
        assert (response.status_code, len(frames)) == (404, 1)
        assert frames[0]["error_code"] == ErrorNumber.NO_WORKER
        assert frames[0]["code"] == "not-found"
        assert "nobody" in frames[0]["text"]
        assert response.headers["x-request-id"] == frames[0]["request_id"]
        assert network.calls == [f"{CONTROLLER}/worker_generate_stream"]

    run(main())


def test_a_worker_that_is_gone_is_passed_over_and_removed() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        for port in (1, 2):
            await register(network, registration(port, add_worker(network, port)))
        del network.apps["http://localhost:1"]
        response = await post(network, "/worker_generate_stream", asked())
        assert frames_of(response.content)[-1]["error_code"] == 0
        assert [worker.address for worker in registry.workers] == ["http://localhost:2"]
        del network.apps["http://localhost:2"]
        last = frames_of((await post(network, "/worker_generate_stream", asked())).content)
        assert [frame["error_code"] for frame in last] == [ErrorNumber.UNREACHABLE]
        assert last[0]["code"] == "worker-lost"

    run(main())


def test_a_busy_worker_is_passed_over_and_two_of_them_are_told() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        for port in (1, 2):
            worker = add_worker(network, port, options=QueueOptions(max_running=1, max_waiting=0))
            worker.queue.num_running = 1  # as if one were under way
            await register(network, registration(port, worker))
        response = await post(network, "/worker_generate_stream", asked())
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert frames_of(response.content)[0]["code"] == "server-busy"
        assert [call for call in network.calls if "generate" in call][1:] == [
            "http://localhost:1/worker_generate_stream",
            "http://localhost:2/worker_generate_stream",
        ]

    run(main())


class Breaking:
    """A worker that dies in the middle of a frame, and then answers nothing any more."""

    def __init__(self) -> None:
        self.is_dead = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if self.is_dead:
            raise httpx.ConnectError("nobody is there")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/worker_get_status":
            body = json.dumps(WorkerStatus(("tiny",)).to_json()).encode()
        else:
            body, self.is_dead = b'{"text": "whole", "error_code": 0}\0{"text": "ha', True
        await send({"type": "http.response.body", "body": body, "more_body": False})


def test_a_worker_lost_in_mid_answer_costs_that_answer_and_the_next_goes_elsewhere() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        network.apps["http://localhost:1"] = Breaking()
        await register(network, registration(1))
        await register(network, registration(2, add_worker(network, 2)))
        frames = frames_of((await post(network, "/worker_generate_stream", asked())).content)
        assert frames[0] == {"text": "whole", "error_code": 0}
        assert [frame["error_code"] for frame in frames] == [0, ErrorNumber.UNREACHABLE]
        assert frames[1]["code"] == "worker-lost"
        assert [worker.address for worker in registry.workers] == ["http://localhost:2"]
        again = frames_of((await post(network, "/worker_generate_stream", asked())).content)
        assert again[-1]["text"].endswith("two dogs")

    run(main())


def test_a_controller_is_a_worker_of_another_one() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        above = "http://localhost:30000"
        registry = add_controller(network, address=above)
        await register(network, registration(1, add_worker(network, 1)))
        client = AsyncServingClient(above, token=TOKEN, transport=network)
        await client.register(Registration(CONTROLLER, check_heart_beat=False))
        assert registry.models() == ["tiny"]
        pieces = [message async for message in client.stream(GenerateRequest("p", model="tiny"))]
        assert "".join(piece.delta or "" for piece in pieces) == "two dogs"
        assert network.calls[-2:] == [
            f"{CONTROLLER}/worker_generate_stream",
            "http://localhost:1/worker_generate_stream",
        ]

    run(main())


def test_controllers_in_a_circle_end() -> None:
    async def main() -> None:
        network = Network()
        registry = add_controller(network)
        registry.register(CONTROLLER, WorkerStatus(("tiny",)), check_heart_beat=False)
        frames = frames_of((await post(network, "/worker_generate_stream", asked())).content)
        assert [frame["code"] for frame in frames] == ["request"]
        assert len(network.calls) == MAX_HOPS + 1

    run(main())


def test_turns_of_one_conversation_go_to_one_worker() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        engines = [WordEngine(), WordEngine()]
        for port, engine in enumerate(engines, start=1):
            await register(network, registration(port, add_worker(network, port, engine=engine)))
        await post(network, "/worker_generate_stream", asked("USER: other ASSISTANT:"))
        for turn in range(4):
            body = asked(
                f"USER: <image>\nturn {turn} ASSISTANT:", images=["not a picture, but always the same"]
            )
            await post(network, "/worker_generate_stream", body)
        called = [call for call in network.calls if call.endswith(":2/worker_generate_stream")]
        assert len(called) in (0, 4)

    run(main())


def test_with_a_key_every_route_but_health_wants_it() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network, keys=(TOKEN,))
        for path in (
            "/list_models",
            "/get_worker_address",
            "/refresh_all_workers",
            "/worker_get_status",
            "/worker_generate_stream",
            "/register_worker",
            "/receive_heart_beat",
        ):
            body = asked() | {"worker_name": "http://localhost:1", "check_heart_beat": True}
            body |= {"worker_status": None, "queue_length": 0}
            response = await post(network, path, body, token=None)
            assert (path, response.status_code) == (path, 401)
        async with network.client(token=None) as client:
            assert (await client.get(f"{CONTROLLER}/health")).status_code == 200
        assert (await post(network, "/list_models")).status_code == 200

    run(main())


def test_pages_of_other_sites_and_rebound_names_are_refused() -> None:
    async def main() -> None:
        network = Network()
        add_controller(network)
        async with network.client() as client:
            for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
                response = await client.post(f"{CONTROLLER}/list_models", headers=headers)
                assert response.status_code == 403

    run(main())


def test_the_errors_have_classes() -> None:
    async def main() -> None:
        network = Network()
        dispatcher = Dispatcher(Registry(), DispatchOptions(token=TOKEN), transport=network)
        with pytest.raises(NotFoundError):
            async for _ in dispatcher.frames(
                GenerateRequest("p", model="m"), b"{}", request_id="r", num_hops=0
            ):
                pass
        with pytest.raises(RegistrationError):
            await dispatcher.register(Registration("http://localhost:9"), has_token=True)
        dispatcher.registry.register("http://localhost:9", WorkerStatus(("m",)), check_heart_beat=True)
        with pytest.raises(WorkerLostError):
            async for _ in dispatcher.frames(
                GenerateRequest("p", model="m"), b"{}", request_id="r", num_hops=0
            ):
                pass
        client = AsyncServingClient(CONTROLLER, token="wrong", transport=network)
        add_controller(network, keys=(TOKEN,))
        with pytest.raises(ReportedError) as caught:
            await client.models()
        assert caught.value.code == "authentication"
        assert caught.value.request_id

    run(main())
