"""Endpoints for the tests of the remote engine: a scripted transport, and a server of raw bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from llava.engine.remote import RemoteEngine, RemoteOptions

URL = "http://model.example/v1"
MODELS = {"object": "list", "data": [{"id": "tiny", "owned_by": "vllm"}]}


def chunk(text: str | None = None, reason: str | None = None, **more: object) -> dict[str, Any]:
    """Return one event of a chat stream."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


USAGE: dict[str, Any] = {
    "choices": [],
    "usage": {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}
GOOD = (chunk("Two"), chunk(" dogs"), chunk(reason="stop"), USAGE, "[DONE]")


def sse(events: Sequence[object]) -> bytes:
    """Return events as the bytes of a stream."""
    texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def stream_of(*events: object) -> httpx.Response:
    """Return a streaming response."""
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=sse(events))


class Script:
    """A transport that answers /models itself and each further request with the next of its responses."""

    def __init__(self, *responses: httpx.Response | Exception, models: object = MODELS) -> None:
        self._responses = list(responses)
        self._models = models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        if request.method == "GET":
            return httpx.Response(200, json=self._models)
        self.bodies.append(json.loads(request.content))
        # The last one stands for all that follow.
        response = self._responses[min(len(self.bodies), len(self._responses)) - 1]
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)


@contextmanager
def engine_of(
    handler: Callable[[httpx.Request], httpx.Response],
    *,
    model: str | None = None,
    api_key: str | None = None,
    **options: Any,
) -> Iterator[RemoteEngine]:
    """Yield an engine whose bytes go to `handler`; waits between attempts are short."""
    engine = RemoteEngine(
        URL,
        model=model,
        api_key=api_key,
        options=RemoteOptions(**{"backoff_s": 0.001, **options}),
        transport=httpx.MockTransport(handler),
    )
    try:
        yield engine
    finally:
        engine.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class RawServer:
    """Listens on a port of this machine; `behave(connection, request body)` answers each connection."""

    def __init__(self, behave: Callable[[socket.socket, bytes], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._threads: list[threading.Thread] = []
        self.heads: list[bytes] = []
        """Head of each request."""
        self.num_requests = 0
        self.num_open = 0
        self.most_open = 0
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Stop listening and wait for the connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                head, body = _read_request(connection)
                self.heads.append(head)
                if head.startswith(b"GET"):
                    _send_models(connection)
                    return
                with self._lock:
                    self.num_requests += 1
                    self.num_open += 1
                    self.most_open = max(self.most_open, self.num_open)
                try:
                    self._behave(connection, body)
                finally:
                    with self._lock:
                        self.num_open -= 1
            except OSError:
                return  # the client went away


def _read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            raise OSError("the client went away")
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line]
    while len(body) < sum(lengths):
        body += connection.recv(65536)
    return head, body


def _send_models(connection: socket.socket) -> None:
    body = json.dumps(MODELS).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)


@contextmanager
def raw_server(behave: Callable[[socket.socket, bytes], None]) -> Iterator[RawServer]:
    """Yield a server of raw bytes."""
    server = RawServer(behave)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def engine_at(url: str, **options: Any) -> Iterator[RemoteEngine]:
    """Yield an engine for a real address."""
    engine = RemoteEngine(url, options=RemoteOptions(**{"backoff_s": 0.001, **options}))
    try:
        yield engine
    finally:
        engine.close()
