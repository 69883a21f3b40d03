"""Real servers on free ports of this machine, in a thread of the tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from llava.engine.protocol import Engine
from llava.serve.application import ServeOptions, create_app
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.running import listen, new_server
from llava.serve.request_queue import QueueOptions
from llava.serve.served import ServedModels

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@contextmanager
def live(app: ASGIApp, limits: Limits | None = None) -> Iterator[httpx.Client]:
    """Yield a client of an application that runs."""
    listener = listen("127.0.0.1", 0)
    server = new_server(app, limits or Limits())
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextmanager
def serving(
    engines: Mapping[str, Engine] | Engine,
    options: ServeOptions | None = None,
    *,
    queue: QueueOptions | None = None,
) -> Iterator[httpx.Client]:
    """Yield a client of the application of `llava serve` with given engines; one alone is called "echo"."""
    models = ServedModels(queue)
    for name, engine in ({"echo": engines} if isinstance(engines, Engine) else engines).items():
        models.add(name, engine)
    options = options or ServeOptions()
    app = create_app(models, Lifecycle("ready"), options)
    with live(app, options.limits) as client:
        yield client
    models.close()


def ask(client: httpx.Client, content: Any = "Hello", **fields: Any) -> httpx.Response:
    """Post one question."""
    body = {"model": "echo", "messages": [{"role": "user", "content": content}], **fields}
    return client.post("/v1/chat/completions", json=body)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a response, which must have our shape and the id of its header."""
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "remedy", "docs", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    return error


def wait_until(holds: Callable[[], object], timeout_s: float = 5.0) -> float:
    """Wait until something holds and return after how many seconds; fails after `timeout_s`."""
    start = time.perf_counter()
    while not holds():
        assert time.perf_counter() - start < timeout_s, "it never held"
        time.sleep(0.005)
    return time.perf_counter() - start


def raw(client: httpx.Client, *, receive_buffer: int | None = None) -> socket.socket:
    """Open a bare connection to the server of a client."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(5)
    connection.connect((client.base_url.host, client.base_url.port))
    return connection


def read_until(connection: socket.socket, part: bytes) -> bytes:
    """Read until `part` is there."""
    data = b""
    while part not in data:
        received = connection.recv(65536)
        assert received, f"the connection ended after {data!r}"
        data += received
    return data


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    data = b""
    try:
        while received := connection.recv(65536):
            data += received
    except ConnectionError:
        pass
    return data
