"""Limits on what a client may send and how long it may take, over real connections."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from llava.errors import ConfigError, RequestTimeoutError, ServerBusyError
from llava.serve.http.access import Access
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import BodyLayer, Limits, json_body
from llava.serve.http.stack import new_app, protect
from tests.serve.servers import error_of, live, raw, read_all, read_until, wait_until

LIMITS = Limits(
    max_body_bytes=10_000,
    max_waiting_bytes=15_000,
    body_timeout_s=0.5,
    header_timeout_s=0.5,
    max_header_bytes=4096,
    write_timeout_s=0.5,
    max_connections=20,
)
HOST = b"Host: localhost\r\n"


def echo_app() -> FastAPI:
    app = new_app()

    @app.post("/echo")
    def echo(request: Request) -> Any:
        return json_body(request)

    @app.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    @app.get("/")
    def front() -> str:
        return "here"

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = protect(echo_app(), Access(), limits=LIMITS, lifecycle=Lifecycle("ready"))
    with live(app, LIMITS) as running:
        yield running


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_body_bytes"):
        Limits(max_body_bytes=0)


def test_one_option_sets_every_time_that_a_client_has() -> None:
    limits = Limits.with_client_timeout(3)
    assert (limits.header_timeout_s, limits.body_timeout_s, limits.write_timeout_s) == (3, 3, 3)
    assert Limits.with_client_timeout(None) == Limits()
    with pytest.raises(ConfigError, match="timeout_s"):
        Limits.with_client_timeout(0)


def test_a_body_within_limits_arrives(client: httpx.Client) -> None:
    assert client.post("/echo", json={"a": ["x" * 5000]}).json() == {"a": ["x" * 5000]}
    assert client.post("/upload", content=b"x" * 10_000).json() == 10_000


@pytest.mark.parametrize("route", ["/echo", "/upload"])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_large_body_is_413_whether_it_declares_its_length_or_not(
    client: httpx.Client, route: str, is_chunked: bool
) -> None:
    data = b'"' + b"x" * 200_000 + b'"'
    content: Any = (data[start : start + 5000] for start in range(0, len(data), 5000)) if is_chunked else data
    response = client.post(route, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (413, "too-large")
    assert client.get("/").json() == "here"


@pytest.mark.parametrize("kind", ["application/json", "application/vnd.x+json; charset=utf-8"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"a":NaN}', 400),
        (b'{"a":1,"a":2}', 400),
        (b'"\xff"', 400),
        (b"[" * 900 + b"]" * 900, 413),
    ],
)
def test_json_is_read_strictly(client: httpx.Client, kind: str, body: bytes, status: int) -> None:
    response = client.post("/echo", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    error_of(response)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_what_a_page_can_send_across_sites_without_asking_is_no_json(
    client: httpx.Client, kind: str | None
) -> None:
    response = client.post("/echo", content=b"{}", headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 400
    assert "no JSON body" in error_of(response)["message"]


def test_a_compressed_body_is_refused(client: httpx.Client) -> None:
    response = client.post("/echo", content=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 400
    assert "compressed" in error_of(response)["message"]


def exchange(client: httpx.Client, data: bytes) -> bytes:
    """Send bytes and return everything that comes back."""
    with raw(client) as connection:
        connection.sendall(data)
        return read_all(connection)


@pytest.mark.parametrize(
    "head",
    [
        HOST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n",
        HOST + b"Content-Length: -1\r\n",
        HOST + b"Content-Length : 2\r\n",
        HOST + b"Transfer-Encoding: gzip\r\n",
        HOST + b"X: a\r\n b\x00\r\n",
        HOST * 2,
        b"",
    ],
)
def test_a_request_that_two_programs_could_read_differently_is_400(client: httpx.Client, head: bytes) -> None:
    answer = exchange(client, b"POST /echo HTTP/1.1\r\n" + head + b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code"' in answer
    assert b"connection: close" in answer
    assert b"x-content-type-options: nosniff" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 20_000,
        b"\x16\x03\x01\x02\x00" * 100,
        b"nonsense\r\n\r\n",
    ],
)
def test_headers_over_the_limit_and_what_is_no_http_are_refused(client: httpx.Client, data: bytes) -> None:
    answer = exchange(client, data)
    # The rest of what was sent can cut the answer off, but not lead to another one.
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert client.get("/").json() == "here"


def test_a_body_that_comes_byte_by_byte_is_408(client: httpx.Client) -> None:
    head = (
        b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with raw(client) as connection:
        start = time.perf_counter()
        connection.sendall(head)
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.perf_counter() - start < 5:
            connection.sendall(b" ")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        assert time.perf_counter() - start < 2
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert RequestTimeoutError.code.encode() in answer


def test_the_layer_itself_gives_up_on_a_body_that_never_comes() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    async def nothing(*_: object) -> None:
        raise AssertionError("nothing is sent, and nothing arrives")

    scope = {
        "type": "http",
        "path": "/",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    with pytest.raises(RequestTimeoutError, match=r"within 0\.05 seconds"):
        asyncio.run(BodyLayer(nothing, Limits(body_timeout_s=0.05))(scope, never, nothing))


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: local"])
def test_a_connection_that_never_asks_is_closed(client: httpx.Client, sent: bytes) -> None:
    with raw(client) as connection:
        start = time.perf_counter()
        connection.sendall(sent)
        assert read_all(connection) == b""
        assert 0.3 < time.perf_counter() - start < 3


def test_slow_headers_of_a_later_request_are_bounded_too(client: httpx.Client) -> None:
    with raw(client) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(connection, b"here")
        start = time.perf_counter()
        connection.sendall(b"GET / HTT")
        assert read_all(connection) == b""
        assert time.perf_counter() - start < 3


def test_more_connections_than_allowed_are_429_and_the_server_answers_afterwards(
    client: httpx.Client,
) -> None:
    opened = [raw(client) for _ in range(200)]
    try:
        refused = [connection for connection in opened if _is_readable(connection)]
        assert len(refused) >= 200 - LIMITS.max_connections
        answer = read_all(refused[-1])
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert ServerBusyError.code.encode() in answer
        assert b"retry-after: " in answer
    finally:
        for connection in opened:
            connection.close()

    def answers() -> bool:
        with httpx.Client(base_url=client.base_url) as fresh:
            return fresh.get("/").status_code == 200

    assert wait_until(answers) < 2


def _is_readable(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        connection.settimeout(5)


def test_large_requests_at_once_are_429(client: httpx.Client) -> None:
    head = (
        b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 9000\r\n\r\n"
    )
    with raw(client) as one:
        one.sendall(head + b" " * 8990)
        time.sleep(0.1)
        response = client.post(
            "/echo", content=b'"' + b"x" * 8000 + b'"', headers={"Content-Type": "application/json"}
        )
        assert (response.status_code, error_of(response)["code"]) == (429, "server-busy")
        one.sendall(b'"12345678"')
        read_until(one, b"12345678")
    response = client.post(
        "/echo", content=b'"' + b"x" * 8000 + b'"', headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200


def test_a_request_id_from_outside_is_kept_only_when_it_is_harmless(client: httpx.Client) -> None:
    for given, is_kept in [
        ("trace-0123456789", True),
        ("x" * 65, False),
        ("short", False),
        ("a b\tc d e f", False),
    ]:
        answer = client.get("/", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is is_kept
    two = client.get("/", headers=[("X-Request-Id", "first-of-two"), ("X-Request-Id", "second-of-two")])
    assert two.headers["x-request-id"].startswith("req-")
