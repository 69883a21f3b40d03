"""A worker over an engine of words: what it answers, what it refuses, and that nothing of a request stays."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from llava.errors import ConfigError, EngineError, ImageError, RemoteError, ReportedError
from llava.serve.client import AsyncServingClient, ServingClient
from llava.serve.protocol import NO_ROOM, GenerateRequest
from llava.serve.request_queue import QueueOptions
from llava.serve.worker import ModelWorker
from llava.templates import PICTURE, Turn
from tests.engine.endpoints import GOOD, Script, engine_of, stream_of
from tests.serve.network import (
    LONGEST,
    Network,
    WordEngine,
    add_worker,
    asked,
    calling,
    frames_of,
    run,
    until,
)

ADDRESS = "http://localhost:1"
PATH = "/worker_generate_stream"


def picture(width: int = 8) -> str:
    written = io.BytesIO()
    Image.new("RGB", (width, 6), (200, 30, 30)).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def ask(body: object, *, engine: WordEngine | None = None, takes_prompts: bool = True) -> Any:
    """Return the response of a worker of its own."""

    async def main() -> Any:
        network = Network()
        worker = add_worker(network, 1, engine=engine, takes_prompts=takes_prompts)
        async with network.client() as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            response = await client.post(ADDRESS + PATH, content=content, headers=headers)
        assert worker.num_requests == 0
        return response

    return run(main())


def test_the_originals_clients_get_everything_so_far_with_the_prompt() -> None:
    engine = WordEngine(("two", " dogs", " and a cat"), delay_s=0.02)
    frames = frames_of(ask(asked(), engine=engine).content)
    prompt = asked()["prompt"]
    assert [frame["text"] for frame in frames] == [
        prompt + "two",
        prompt + "two dogs",
        prompt + "two dogs and a cat",
    ]
    assert {frame["error_code"] for frame in frames} == {0}
    assert set(frames[0]) == {"text", "error_code"}


def test_our_clients_get_what_is_new_and_the_figures() -> None:
    engine = WordEngine(("two", " dogs"), delay_s=0.02)
    frames = frames_of(ask(asked(deltas=True), engine=engine).content)
    assert [frame["delta"] for frame in frames] == ["two", " dogs", ""]
    assert "text" not in frames[0]
    assert frames[-1]["finish_reason"] == "stop"
    assert frames[-1]["usage"] == {"prompt_tokens": 7, "cached_tokens": 3, "new_tokens": 2}
    assert frames[-1]["timing"]["total_s"] >= 0.04


def test_bytes_on_the_wire_grow_with_the_answer_and_not_with_its_square() -> None:
    def num_bytes(num_words: int, *, deltas: bool) -> int:
        return len(
            ask(asked(deltas=deltas), engine=WordEngine(["word "] * num_words, delay_s=0.0005)).content
        )

    # Pieces that come together make one frame, so that small numbers are not exact.
    assert num_bytes(400, deltas=True) < 6 * num_bytes(100, deltas=True)


def test_a_request_reaches_the_engine_as_it_was_meant() -> None:
    engine = WordEngine()
    body = asked("USER: <image>\nWhat? ASSISTANT:", images=[picture(9)], temperature=0.0005, top_p=0)
    ask(body | {"stop": "###", "max_new_tokens": 5000}, engine=engine)
    request = engine.requests[0]
    assert request.prompt == body["prompt"]
    assert [image.size for image in request.images if isinstance(image, Image.Image)] == [(9, 6)]
    assert request.sampling.is_greedy
    assert request.sampling.max_new_tokens == 1024
    assert request.sampling.stop == ("###",)
    assert 0 < request.sampling.top_p < 1e-3


def test_the_stop_string_never_arrives() -> None:
    frames = frames_of(ask(asked(), engine=WordEngine(("two", "<", "/s", "> more"), delay_s=0.01)).content)
    assert frames[-1]["text"] == asked()["prompt"] + "two"


def test_a_worker_that_takes_only_dialogues_reads_them_out_of_the_prompt() -> None:
    engine = WordEngine()
    system = "".join(span.text for span in engine.template.render([], add_generation_prompt=False))
    prompt = f"{system}USER: <image>\nHow many? ASSISTANT: Two.</s>USER: Sure? ASSISTANT:"
    ask(asked(prompt, images=[picture()]), engine=engine, takes_prompts=False)
    assert engine.requests[0].turns == (
        Turn("user", (PICTURE, "\nHow many?")),
        Turn("assistant", ("Two.",)),
        Turn("user", ("Sure?",)),
    )
    refused = ask(asked("something else"), takes_prompts=False)
    assert (refused.status_code, frames_of(refused.content)[0]["code"]) == (400, "prompt")


def test_a_prompt_that_fills_the_context_is_answered_as_the_original_did() -> None:
    body = asked("x" * (LONGEST + 1))
    response = ask(body)
    assert response.status_code == 200
    assert frames_of(response.content) == [{"text": body["prompt"] + NO_ROOM, "error_code": 0}]
    ours = ask(body | {"deltas": True})
    assert (ours.status_code, frames_of(ours.content)[0]["code"]) == (400, "context-length")
    assert frames_of(ask(asked(max_new_tokens=0)).content)[0]["text"].endswith(NO_ROOM)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "request"),
        (b'{"prompt": NaN}', 400, "request"),
        (b'{"prompt": "a", "prompt": "b"}', 400, "request"),
        (b"\xff\xfe", 400, "request"),
        (b"[" * 100_000, 413, "too-large"),
        (asked(images=["/etc/passwd"]), 400, "image"),
        (asked(images=["http://169.254.169.254/x" + "y" * 40]), 400, "image"),
        (asked(images=["A" * 80]), 400, "image"),
        (asked(temperature=-1), 400, "request"),
        (asked(max_new_tokens=-1), 400, "request"),
        ([], 400, "request"),
        ({}, 400, "request"),
    ],
)
def test_what_is_wrong_is_said_with_a_code(body: object, status: int, code: str) -> None:
    response = ask(body)
    assert response.status_code == status
    # What fails before the stream is JSON, what fails inside it a frame; both name the code.
    told = json.loads(response.content.rstrip(b"\0"))
    assert told.get("error", told)["code"] == code
    assert "etc/passwd" not in response.text
    assert "169.254" not in response.text


@pytest.mark.parametrize(
    "failure", [EngineError("out of memory", remedy="Send less."), ValueError("/secret/x")]
)
def test_a_failure_in_mid_answer_is_told_and_the_place_is_free_again(failure: Exception) -> None:
    engine = WordEngine()
    engine.failure = failure
    frames = frames_of(ask(asked(), engine=engine).content)
    assert frames[-2]["text"].endswith("two dogs") or frames[-2]["text"].endswith("two")
    assert frames[-1]["error_code"] == 1
    assert frames[-1]["code"] == ("engine" if isinstance(failure, EngineError) else "internal")
    assert "secret" not in json.dumps(frames)


def test_a_thousand_failures_leave_nothing_behind() -> None:
    async def main() -> None:
        network = Network()
        engine = WordEngine(())
        engine.failure = EngineError("out of memory")
        worker = add_worker(network, 1, engine=engine, options=QueueOptions(max_running=4))
        async with network.client() as client:
            for _ in range(50):
                calls = (client.post(ADDRESS + PATH, json=asked()) for _ in range(20))
                told = [frames_of(response.content)[-1] for response in await asyncio.gather(*calls)]
                # Not the status: on a machine that stalls, a sign of life goes out first, with 200.
                assert {frame["code"] for frame in told} == {"engine"}
        assert worker.num_requests == 0
        await until(lambda: worker.queue.num_running == 0)

    run(main(), within_s=120)  # a thousand tracebacks into the log, on a machine that may be busy


def test_one_more_than_may_wait_is_told_to_come_back() -> None:
    async def main() -> None:
        network = Network()
        engine = WordEngine(["word"] * 100, delay_s=0.05)
        worker = add_worker(network, 1, engine=engine, options=QueueOptions(1, 1))
        app, body = network.apps[ADDRESS], json.dumps(asked()).encode()
        async with calling(app, PATH, body) as first, calling(app, PATH, body):
            await until(lambda: worker.num_requests == 2)
            await first.has_arrived.wait()
            assert worker.status().queue_length == 2
            async with calling(app, PATH, body) as third:
                await third.task
                assert third.status == 429
                assert frames_of(b"".join(third.pieces))[0]["code"] == "server-busy"
            assert len(engine.requests) == 1
        await until(lambda: worker.num_requests == 0)

    run(main())


def test_a_client_that_leaves_ends_its_answer_within_a_second() -> None:
    async def main() -> None:
        network = Network()
        engine = WordEngine(["word"] * 1000, delay_s=0.02)
        worker = add_worker(network, 1, engine=engine)
        app, body = network.apps[ADDRESS], json.dumps(asked()).encode()
        async with calling(app, PATH, body) as call:
            await call.has_arrived.wait()
            call.leave()
            assert await until(lambda: engine.streams[0].has_ended) < 1
        assert worker.num_requests == 0
        assert engine.streams[0].answer.finish_reason == "cancelled"

    run(main())


def test_a_client_that_leaves_while_it_waits_is_never_given_to_the_engine() -> None:
    async def main() -> None:
        network = Network()
        engine = WordEngine(["word"] * 1000, delay_s=0.02)
        worker = add_worker(network, 1, engine=engine, options=QueueOptions(1, 5))
        app, body = network.apps[ADDRESS], json.dumps(asked()).encode()
        async with calling(app, PATH, body) as first:
            await first.has_arrived.wait()
            async with calling(app, PATH, body):
                await until(lambda: worker.num_requests == 2)
            assert worker.num_requests == 1
        assert len(engine.requests) == 1

    run(main())


def test_nuls_keep_a_slow_answer_alive() -> None:
    async def main() -> None:
        network = Network()
        add_worker(network, 1, engine=WordEngine(["late"], delay_s=2.6))
        app, body = network.apps[ADDRESS], json.dumps(asked()).encode()
        async with calling(app, PATH, body) as call:
            await call.task
        assert call.pieces[0] == b"\0"
        assert frames_of(b"".join(call.pieces))[0]["text"].endswith("late")

    run(main())


def test_before_a_model_is_there_requests_are_refused() -> None:
    async def main() -> None:
        network = Network()
        worker = add_worker(network, 1)
        worker._queue = None
        async with network.client() as client:
            assert (await client.post(f"{ADDRESS}/worker_get_status")).status_code == 503
            assert (await client.post(ADDRESS + PATH, json=asked())).status_code == 503

    run(main())


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        ModelWorker(options=QueueOptions(max_running=0))


def test_the_client_reads_pieces_figures_and_errors() -> None:
    network = Network()
    add_worker(network, 1)
    with ServingClient(ADDRESS, transport=network) as client:
        messages = list(client.stream(GenerateRequest("USER: hi ASSISTANT:")))
        assert "".join(message.delta or "" for message in messages) == "two dogs"
        assert messages[-1].usage["new_tokens"] == 2
        assert client.status().model_names == ("tiny",)
        with pytest.raises(ReportedError) as caught:
            list(client.stream(GenerateRequest("p", images=("x",)), request_id="req-of-this-test"))
        assert (caught.value.code, caught.value.request_id) == (ImageError.code, "req-of-this-test")


class Answering:
    """An application that answers every request with the same bytes."""

    def __init__(self, body: bytes, *, kind: bytes = b"application/octet-stream") -> None:
        self._body = body
        self._kind = kind

    async def __call__(self, _: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", self._kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "sent no answer"),
        (b'{"delta": "a", "error_code": 0}\0', "broke off"),
        (b'{"text": "pa", "error_code": 0}\0{"te', "broke off"),
        (b"<html>\0", "something else than an answer"),
        (b'{"text": 5}\0', "something else than an answer"),
    ],
)
def test_an_answer_that_is_none_is_a_remote_error(body: bytes, words: str) -> None:
    async def main() -> None:
        network = Network()
        network.apps[ADDRESS] = Answering(body)
        client = AsyncServingClient(ADDRESS, transport=network)
        with pytest.raises(RemoteError, match=words):
            async for _ in client.stream(GenerateRequest("p")):
                pass

    run(main())


def test_nobody_there_is_a_remote_error() -> None:
    with ServingClient("http://localhost:9", transport=Network()) as client:
        with pytest.raises(RemoteError, match="cannot be reached"):
            client.models()
        with pytest.raises(RemoteError, match="cannot be reached"):
            list(client.stream(GenerateRequest("p")))


def test_an_openai_compatible_server_answers_as_a_worker() -> None:
    async def main() -> None:
        script = Script(stream_of(*GOOD))
        network = Network()
        with engine_of(script) as engine:
            add_worker(network, 1, name=engine.model_name, engine=engine, takes_prompts=False)
            system = "".join(span.text for span in engine.template.render([], add_generation_prompt=False))
            body = asked(f"{system}USER: <image>\nHow many? ASSISTANT:", images=[picture()])
            async with network.client() as client:
                response = await client.post(ADDRESS + PATH, json=body)
        assert frames_of(response.content)[-1]["text"] == body["prompt"] + "Two dogs"
        (message,) = script.bodies[0]["messages"]
        assert [part["type"] for part in message["content"]] == ["image_url", "text"]
        assert script.bodies[0]["stop"] == ["</s>"]

    run(main())
