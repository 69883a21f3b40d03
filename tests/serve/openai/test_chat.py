"""Chat completions over real connections, with an engine that does as it is told."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava import errors
from llava.engine.request import Request
from llava.errors import LlavaError
from llava.serve.application import ServeOptions, create_app
from llava.serve.http.access import Access
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.openai.messages import PromptLimits
from llava.serve.openai.pictures import PictureLimits
from llava.serve.request_queue import QueueOptions
from llava.serve.served import ServedModels
from tests.serve.engines import NUM_CACHED_TOKENS, NUM_PROMPT_TOKENS, EchoEngine, endless, failing_after
from tests.serve.servers import ask, error_of, live, raw, serving, wait_until

ANSWER = "heard: Hello pictures: []"


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def client(engine: EchoEngine) -> Iterator[httpx.Client]:
    with serving(engine) as running:
        yield running


def events_of(response: httpx.Response) -> list[Any]:
    """Return the data of a stream's events."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = response.text.split("\n\n")
    assert last == ""
    return [
        data if data == "[DONE]" else json.loads(data)
        for data in (event.removeprefix("data: ") for event in events)
    ]


def text_of(events: list[Any], index: int = 0) -> str:
    """Return a choice's text."""
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices if choice["index"] == index)


def test_a_question_is_answered_with_its_counts(client: httpx.Client) -> None:
    response = ask(client, temperature=0)
    assert response.status_code == 200
    body = response.json()
    assert body["id"] == f"chatcmpl-{response.headers['x-request-id']}"
    assert (body["object"], body["model"]) == ("chat.completion", "echo")
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    num_new = len(ANSWER) + 2
    assert body["usage"] == {
        "prompt_tokens": NUM_PROMPT_TOKENS,
        "completion_tokens": num_new,
        "total_tokens": NUM_PROMPT_TOKENS + num_new,
        "prompt_tokens_details": {"cached_tokens": NUM_CACHED_TOKENS},
    }
    assert body["timing"]["first_token_s"] == 0.5


@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_stream_says_the_same_as_a_whole_answer(client: httpx.Client, num_choices: int) -> None:
    fields: dict[str, Any] = {"n": num_choices, "logprobs": True, "top_logprobs": 2, "max_tokens": 9}
    whole = ask(client, **fields).json()
    events = events_of(ask(client, stream=True, stream_options={"include_usage": True}, **fields))
    assert events.pop() == "[DONE]"
    usage = events.pop()
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    for index, choice in enumerate(whole["choices"]):
        assert text_of(events, index) == choice["message"]["content"]
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["length"]
        assert own[-1]["logprobs"] == choice["logprobs"]
        assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_a_stream_has_no_usage_unless_it_is_asked_for(client: httpx.Client) -> None:
    events = events_of(ask(client, stream=True))
    assert all("usage" not in event for event in events[:-1])


def test_pieces_are_sent_as_they_come() -> None:
    may_go_on = threading.Event()

    def pieces(_: Request) -> Iterator[str]:
        yield "first"
        assert may_go_on.wait(5)
        yield " second"

    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with (
        serving(EchoEngine(pieces)) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as got,
    ):
        received = ""
        for part in got.iter_text():
            received += part
            if '"first"' in received and not may_go_on.is_set():
                assert "second" not in received
                may_go_on.set()
    assert received.endswith("data: [DONE]\n\n")
    assert '" second"' in received


def test_seeds_count_up_over_choices(client: httpx.Client, engine: EchoEngine) -> None:
    ask(client, n=3, seed=5, temperature=1, stop="x")
    assert [request.sampling.seed for request in engine.requests] == [5, 6, 7]
    assert engine.requests[0].sampling.stop == ("x",)


def test_models_are_listed_and_found_by_name() -> None:
    first, second = EchoEngine(), EchoEngine()
    with serving({"org/one": first, "two": second}) as client:
        cards = client.get("/v1/models").json()
        assert [card["id"] for card in cards["data"]] == ["org/one", "two"]
        assert client.get("/v1/models/org/one").json()["owned_by"] == "llava"
        ask(client, model="two")
        assert (len(first.requests), len(second.requests)) == (0, 1)
        ask(client, model=None)
        assert len(first.requests) == 1
        for response in (ask(client, model="three"), client.get("/v1/models/three")):
            assert (response.status_code, error_of(response)["code"]) == (404, "not-found")
            assert error_of(response)["remedy"] == "There is: org/one, two."


CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, LlavaError) and cls.__init__ is LlavaError.__init__
]


@pytest.mark.parametrize("stream", [False, True])
def test_every_error_of_an_engine_has_its_own_code(stream: bool) -> None:
    engine = EchoEngine()
    with serving(engine) as client:
        for kind in CLASSES:
            engine.error = kind("cause at /srv/models/secret", remedy="remedy")
            response = ask(client, stream=stream)
            assert response.status_code >= 400
            assert error_of(response)["code"] == kind.code
            assert "secret" not in response.text
        assert ask(client).status_code == 200


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.EngineError("out of memory"), "engine"), (ZeroDivisionError("/srv/x/y"), "internal")],
)
def test_an_error_in_mid_stream_is_said_in_the_stream(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), serving(EchoEngine(failing_after("a", "b", error=error))) as client:
        response = ask(client, stream=True)
        assert response.status_code == 200
        *events, last = events_of(response)
        assert text_of(events) == "ab"
        assert last["error"]["code"] == code
        assert last["error"]["request_id"] == response.headers["x-request-id"]
        assert last["error"]["request_id"] in caplog.text
        whole = ask(client)
        assert (whole.status_code >= 500, error_of(whole)["code"]) == (True, code)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer_within_a_second(stream: bool) -> None:
    engine = EchoEngine(endless())
    with serving(engine) as client:
        body = {"model": "echo", "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        connection = raw(client)
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        wait_until(lambda: engine.requests)
        if stream:
            assert b"200 OK" in connection.recv(4096)
        time.sleep(0.1)
        connection.close()
        assert wait_until(lambda: engine.ends == ["cancelled"]) < 1
        metrics = client.get("/metrics").text
        assert 'llava_requests_total{code="client-gone",model="echo"} 1.0' in metrics
        assert 'llava_running{model="echo"} 0.0' in metrics


def test_a_client_that_never_reads_is_cut_off() -> None:
    engine = EchoEngine(endless(0, "x" * 20_000))
    options = ServeOptions(limits=Limits(write_timeout_s=0.3))
    with serving(engine, options) as client:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        data = json.dumps(body | {"max_tokens": 2000}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        with raw(client, receive_buffer=4096) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
            assert wait_until(lambda: engine.ends, timeout_s=8) < 8
            wait_until(lambda: 'code="client-gone"' in client.get("/metrics").text)


def test_a_full_queue_is_429_and_others_are_not_affected() -> None:
    engine = EchoEngine()
    engine.gate.clear()
    with serving(engine, queue=QueueOptions(max_running=2, max_waiting=2)) as client:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(ask(client).status_code)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: 'llava_waiting{model="echo"} 2.0' in client.get("/metrics").text)
        response = ask(client)
        assert (response.status_code, error_of(response)["code"]) == (429, "server-busy")
        assert response.headers["retry-after"] == "2"
        engine.gate.set()
        for thread in threads:
            thread.join()
        assert found == [200] * 4
        assert ask(client).status_code == 200


def test_an_answer_that_takes_too_long_is_504() -> None:
    with serving(EchoEngine(endless()), queue=QueueOptions(answer_timeout_s=0.2)) as client:
        response = ask(client)
        assert (response.status_code, error_of(response)["code"]) == (504, "answer-timeout")
        *_, last = events_of(ask(client, stream=True))
        assert last["error"]["code"] == "answer-timeout"


def test_every_route_needs_the_key_and_says_where_it_comes_from() -> None:
    key = "0123456789abcdef"
    with serving(EchoEngine(), ServeOptions(access=Access(keys=(key,)))) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for method, path in [
            ("GET", "/"),
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/metrics"),
        ]:
            response = client.request(method, path)
            assert (response.status_code, error_of(response)["code"]) == (401, "authentication")
            assert response.headers["www-authenticate"].startswith("Bearer")
        client.headers["Authorization"] = f"Bearer {key}"
        assert ask(client).status_code == 200
        response = client.get("/v1/models", headers={"Origin": "http://evil.example"})
        assert (response.status_code, error_of(response)["code"]) == (403, "access")
        response = client.get("/v1/models", headers={"Host": "evil.example"})
        assert (response.status_code, error_of(response)["code"]) == (403, "access")


def test_what_the_api_does_not_have_is_refused_in_its_own_words_with_a_page_behind_it_too() -> None:
    def mount_page(app: FastAPI, _: ServedModels) -> FastAPI:
        app.mount("/", FastAPI())
        return app

    models = ServedModels()
    models.add("echo", EchoEngine())
    with live(create_app(models, Lifecycle("ready"), mount_page=mount_page)) as client:
        for method, path, status, code in [
            ("GET", "/v1/no-such-route", 404, "not-found"),
            ("POST", "/v1/embeddings", 404, "not-found"),
            ("GET", "/v1/", 404, "not-found"),
            ("DELETE", "/v1/chat/completions", 405, "method"),
            ("POST", "/v1/models", 405, "method"),
        ]:
            response = client.request(method, path)
            assert (response.status_code, error_of(response)["code"]) == (status, code)
        assert ask(client).status_code == 200
    models.close()


def test_pages_that_were_allowed_can_read_answers_and_no_others() -> None:
    access = Access(keys=("0123456789abcdef",), allowed_hosts=("chat.example",))
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with serving(EchoEngine(), ServeOptions(access=access)) as client:
        for origin, is_allowed in [
            ("https://chat.example", True),
            ("http://chat.example:3000", True),
            ("https://chat.example.evil", False),
            ("https://notchat.example", False),
            ("null", False),
        ]:
            preflight = client.options("/v1/chat/completions", headers={"Origin": origin, **asking})
            assert (preflight.status_code == 200) is is_allowed
            response = client.get("/v1/models", headers={"Origin": origin})
            assert response.status_code == (401 if is_allowed else 403)
            shown = response.headers.get("access-control-allow-origin")
            assert shown == (origin if is_allowed else None)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"max_tokens": -1}, 400),
        ({"temperature": 1000}, 400),
        ({"top_p": 0}, 400),
        ({"n": 10**9}, 400),
        ({"stop": ["x"] * 10_000}, 400),
        ({"seed": 1 << 70}, 400),
        ({"tools": [{"type": "function"}]}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 400),
        ({"messages": []}, 400),
    ],
    ids=str,
)
def test_fields_out_of_bounds_are_400(client: httpx.Client, fields: dict[str, Any], status: int) -> None:
    response = ask(client, **fields)
    assert response.status_code == status
    assert error_of(response)["code"] in ("request", "config")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_without_formats_refuses_them(
    engine: EchoEngine, client: httpx.Client, stream: bool
) -> None:
    schema = {"name": "x", "schema": {"type": "object"}}
    for wanted in ({"type": "json_object"}, {"type": "json_schema", "json_schema": schema}):
        response = ask(client, response_format=wanted, stream=stream)
        assert (response.status_code, error_of(response)["code"]) == (400, "request")
        assert "response_format cannot be carried out by this engine" in error_of(response)["message"]
    assert not engine.requests
    assert ask(client, response_format={"type": "text"}).status_code == 200


@pytest.mark.parametrize("text", ['{"temperature": NaN}', '{"seed": 1, "seed": 2}', '{"x": 1e999}'])
def test_json_that_is_none_is_400(client: httpx.Client, text: str) -> None:
    response = client.post("/v1/chat/completions", content=text, headers={"Content-Type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (400, "request")


def test_a_million_characters_are_413(client: httpx.Client) -> None:
    response = ask(client, "word " * 200_000)
    assert (response.status_code, error_of(response)["code"]) == (413, "too-large")


def test_an_answer_with_active_content_is_json_that_no_browser_runs() -> None:
    text = "<script>alert(1)</script> ![](http://evil.example/x.png) \x00 \u2028."

    def pieces(_: Request) -> Iterator[str]:
        yield from text

    with serving(EchoEngine(pieces)) as client:
        response = ask(client)
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.json()["choices"][0]["message"]["content"] == text
        assert text_of(events_of(ask(client, stream=True))) == text


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    ask(client, n=2, max_tokens=5)
    ask(client, model="nobody")
    text = client.get("/metrics").text
    for line in [
        'llava_requests_total{code="ok",model="echo"} 1.0',
        'llava_tokens_total{kind="prompt",model="echo"} 7.0',
        'llava_tokens_total{kind="cached",model="echo"} 2.0',
        'llava_tokens_total{kind="new",model="echo"} 10.0',
        'llava_http_responses_total{code="not-found",status="404"} 1.0',
        'llava_images_total{kind="cached",model="echo"} 1.0',
        'llava_time_to_first_token_seconds_count{model="echo"} 1.0',
        'llava_waiting{model="echo"} 0.0',
    ]:
        assert line in text.splitlines()


def test_pictures_from_addresses_only_where_allowed() -> None:
    part = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]
    with serving(EchoEngine()) as client:
        assert error_of(ask(client, part))["code"] == "request"
    with serving(EchoEngine(), ServeOptions(prompt=PromptLimits(PictureLimits(allow_urls=True)))) as client:
        response = ask(client, part)
        assert (response.status_code, error_of(response)["code"]) == (400, "image")
