"""One HTTP server under attack: requests as a client would send them, and bytes as no client would.

Whatever an error says is read for paths, addresses and tracebacks on the way.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx

_LEAK: Final = re.compile(
    r"(?<![\w:/.])/(?!v1/|worker_)(?:[\w.+-]+/)+[\w.+-]+"  # a path
    r"|\b[A-Za-z]:\\\w+"
    r"|\b0x[0-9a-fA-F]{6,}\b"  # an object's address
    r"|\bobject at\b|Traceback \(most|\bFile \"|\b\w+\.py\b"
    r"|\b(?:\d{1,3}\.){3}\d{1,3}\b"
)
NO_ANSWER: Final = 0
"""Stands for a status where none came."""


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """With lower-case names."""
    body: bytes
    seconds: float
    fault: str = ""
    """What came instead of an answer."""

    @property
    def seen(self) -> str:
        """The status, with the error's code where there is one."""
        if self.fault:
            return self.fault
        code = self.error.get("code")
        return f"{self.status} {code}" if isinstance(code, str) else str(self.status)

    @property
    def is_refused(self) -> bool:
        """Whether the fault is said to be the client's."""
        return 400 <= self.status < 500

    @property
    def json(self) -> Any:
        """The body as JSON; None for anything else."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def error(self) -> dict[str, Any]:
        """The fields of the error, if it is one in OpenAI's shape."""
        found = self.json
        error = found.get("error") if isinstance(found, dict) else None
        return error if isinstance(error, dict) else {}


class Service:
    """A server on this machine."""

    def __init__(self, url: str, key: str | None, *, timeout_s: float) -> None:
        """`key`: sent as a bearer token; `timeout_s`: after it, an answer counts as none."""
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.host = str(parts.hostname)
        self.port = parts.port or 80
        self.key = key
        self.timeout_s = timeout_s
        self.leaks: list[str] = []
        """What errors gave away."""
        self._client = httpx.Client(trust_env=False, timeout=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def authorization(self) -> dict[str, str]:
        """The headers that open the server."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        has_key: bool = True,
    ) -> Reply:
        """Send a request; what goes wrong on the way is a reply without a status."""
        sent = {**(self.authorization if has_key else {}), **(headers or {})}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
        begin = time.perf_counter()
        try:
            response = self._client.request(method, self.url + path, content=content, headers=raw)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Reply(NO_ANSWER, {}, b"", time.perf_counter() - begin, type(error).__name__)
        reply = Reply(
            response.status_code, dict(response.headers), response.content, time.perf_counter() - begin
        )
        self._look_for_leaks(reply, f"{self.url} {unquote(path)} {sent} {(content or b'')[:100_000]!r}")
        return reply

    def post(self, path: str, value: object, *, has_key: bool = True, **headers: str) -> Reply:
        """Post JSON."""
        return self.send(
            "POST",
            path,
            content=json.dumps(value).encode(),
            headers={"Content-Type": "application/json", **headers},
            has_key=has_key,
        )

    def head(self, method: str, path: str, *lines: str) -> bytes:
        """Return request line, Host and key as bytes, without the empty line that ends them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = [f"{name}: {value}" for name, value in self.authorization.items()]
        return "\r\n".join(
            [f"{method} {path} HTTP/1.1", f"Host: {host}:{self.port}", *own, *lines, ""]
        ).encode("latin-1")

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Open a bare connection."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        connection = socket.socket(family)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(self.timeout_s)
        connection.connect((self.host, self.port))
        return connection

    def exchange(self, data: bytes) -> tuple[Reply, int]:
        """Send bytes and read until the server closes; returns the first reply and how many there were."""
        begin = time.perf_counter()
        received = b""
        fault = ""
        try:
            with self.connect() as connection:
                received = _talk(connection, data)
        except OSError as error:
            fault = type(error).__name__
        reply = parse_reply(received, time.perf_counter() - begin, fault)
        self._look_for_leaks(reply, self.url + data[:100_000].decode("latin-1"))
        return reply, len(re.findall(rb"HTTP/1\.[01] \d{3}", received))

    def _look_for_leaks(self, reply: Reply, sent: str) -> None:
        if reply.status >= 400 and "text/html" not in reply.headers.get("content-type", ""):
            self.leaks += leaks_in(reply.body.decode("utf-8", "replace"), sent)


def _talk(connection: socket.socket, data: bytes) -> bytes:
    """Return everything that comes back; a server that refuses may close before it has read all."""
    received = b""
    with suppress(ConnectionError):
        connection.sendall(data)
    try:
        while part := connection.recv(1 << 16):
            received += part
    except (TimeoutError, ConnectionError):
        if not received:
            raise
    return received


def parse_reply(received: bytes, seconds: float, fault: str = "") -> Reply:
    """Return the first response in some bytes, as far as it came."""
    head, _, body = received.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if match is None:
        return Reply(NO_ANSWER, {}, received, seconds, fault or "closed without an answer")
    pairs = [line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:]]
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Reply(int(match[1]), headers, body, seconds)


def leaks_in(text: str, sent: str) -> list[str]:
    """Return what in the words of an error is a path, an address or a traceback, unless it was sent."""
    return [match[0] for match in _LEAK.finditer(text) if match[0].rstrip(".") not in sent]
