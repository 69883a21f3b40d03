"""Attacks below the application: slow and endless senders, floods, requests with two meanings."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from llava.serve.selftest.outcome import PROMPT_S, Trial, refused
from llava.serve.selftest.service import Reply, Service, parse_reply
from llava.serve.selftest.target import COMPLETIONS, QUESTION, Target, a_picture

_LARGEST: Final = 256 << 20
"""Bytes of a body after which a server is taken to have no limit."""
_FLOOD: Final = 200
_FLOOD_S: Final = 3.0
_RECOVERY_S: Final = 2.0
_MEGABYTE: Final = 1 << 20
_JSON: Final = "Content-Type: application/json"


def send_slowly(target: Target) -> Iterator[Trial]:
    """A4: bodies without end are cut off, by their size and by their time."""
    api = target.api
    with ThreadPoolExecutor(4) as pool:
        slow = {
            what: pool.submit(_drip, api, target.patience_s, head, drop)
            for what, head, drop in (
                ("a body of 1 byte a second", _post(api, "Content-Length: 100000"), b" "),
                ("chunks of 1 byte a second", _post(api, "Transfer-Encoding: chunked"), b"1\r\n \r\n"),
                ("headers of 1 byte a second", api.head("POST", COMPLETIONS) + b"X: ", b"x"),
                ("a connection that says nothing", b"", b""),
            )
        }
        reply, _ = api.exchange(_post(api, f"Content-Length: {10**12}") + b"x" * 1000)
        yield refused("a body that announces 1 TB", reply)
        num_bytes, reply = _endless(api)
        yield Trial("chunks without end", reply.seen, reply.status == 413 and num_bytes < _LARGEST)
        reply = target.ask(QUESTION, picture=a_picture())
        yield Trial("a question meanwhile", reply.seen, reply.status == 200)
        for what, sending in slow.items():
            seconds = sending.result()
            seen = "cut off" if seconds is not None else f"still open after {target.patience_s:g} s"
            yield Trial(what, seen, seconds is not None)


def flood(target: Target) -> Iterator[Trial]:
    """A8: of 200 clients at once those that are too many are told so, and 2 s after they left all is well."""
    body = {
        "model": target.model, "messages": [{"role": "user", "content": QUESTION}], "stream": True,
        "max_tokens": 1000, "temperature": 1,
    }  # fmt: skip
    data = _whole(target.api, json.dumps(body).encode())
    statuses, refusals = _flood(target.api, data)
    for status, count in sorted(statuses.items()):
        seen = f"{status or 'no answer yet'}: {count}"
        yield Trial(f"{_FLOOD} questions at once", seen, status in (0, 200, 429, 503))
    for reply in refusals[:1]:
        has_time = "retry-after" in reply.headers
        yield Trial("when to come back", "Retry-After" if has_time else "not said", has_time)
    begin = time.monotonic()
    reply = target.ask(QUESTION, picture=a_picture())
    while reply.status in (429, 503) and time.monotonic() - begin < _RECOVERY_S:
        reply = target.ask(QUESTION, picture=a_picture())
    # What the answer itself takes here is no matter of recovery.
    seconds = time.monotonic() - begin - target.quiet_s
    is_quick = reply.status == 200 and seconds < _RECOVERY_S
    seen = "answered within 2 s" if is_quick else f"{reply.seen} after {seconds:.1f} s"
    yield Trial("a question after it", seen, is_quick)


def send_ambiguously(target: Target) -> Iterator[Trial]:
    """A9: what two programs could read differently, or is far too large, is refused at once, and once."""
    for service in target.services:
        for what, data in _ambiguous(service).items():
            reply, num_replies = service.exchange(data)
            is_ok = reply.is_refused and num_replies == 1 and reply.seconds < PROMPT_S
            yield Trial(what, reply.seen if num_replies < 2 else f"{num_replies} answers", is_ok)
    for what, data in _broken_json().items():
        for service, path in zip(target.services, (COMPLETIONS, "/worker_generate_stream"), strict=False):
            head = {"Content-Type": "application/json"}
            reply = service.send("POST", path, content=data, headers=head)
            yield refused(what, reply)
    for what, kind, data in _multiparts():
        for path in (COMPLETIONS, "/gradio_api/upload", "/no-such-route"):
            reply = target.api.send("POST", path, content=data, headers={"Content-Type": kind})
            yield refused(f"{what} to {path}", reply)


def never_read(target: Target) -> Iterator[Trial]:
    """A10: a client that does not read is cut off, and costs nobody else an answer."""
    api = target.api
    with ThreadPoolExecutor(2) as pool:
        deaf = pool.submit(_ask_and_never_read, api, target.patience_s)
        body = {
            "model": target.model, "messages": [{"role": "user", "content": QUESTION}], "stream": True,
            "max_tokens": 1000, "temperature": 1, "n": 4,
        }  # fmt: skip
        with suppress(OSError), api.connect(receive_buffer=2048) as streaming:
            streaming.sendall(_whole(api, json.dumps(body).encode()))
            reply = target.ask(QUESTION, picture=a_picture())
            yield Trial("a question while a stream is not read", reply.seen, reply.status == 200)
        num_bytes, seconds = deaf.result()
        is_cut = seconds is not None
        seen = "cut off" if is_cut else f"still open after {target.patience_s:g} s, {num_bytes} bytes taken"
        yield Trial("requests without end, and no answer is read", seen, is_cut)


def _post(service: Service, *lines: str) -> bytes:
    return service.head("POST", COMPLETIONS, _JSON, *lines) + b"\r\n"


def _whole(service: Service, body: bytes) -> bytes:
    return _post(service, f"Content-Length: {len(body)}") + body


def _drip(service: Service, patience_s: float, head: bytes, drop: bytes) -> float | None:
    """Send `head` and then a drop a second; returns when the server gave up, or None."""
    begin = time.monotonic()
    with service.connect() as connection:
        connection.settimeout(1.0)
        with suppress(ConnectionError):
            connection.sendall(head)
            while time.monotonic() - begin < patience_s:
                try:
                    if not connection.recv(4096):
                        break
                except TimeoutError:
                    connection.sendall(drop)
            else:
                return None
    return time.monotonic() - begin


def _endless(service: Service) -> tuple[int, Reply]:
    """Send chunks until the server refuses; returns how many bytes it let come, and its answer."""
    chunk = b"100000\r\n" + b" " * _MEGABYTE + b"\r\n"
    num_bytes, received = 0, b""
    begin = time.monotonic()
    try:
        with service.connect() as connection, selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(_post(service, "Transfer-Encoding: chunked"))
            while num_bytes < _LARGEST and not selector.select(0):
                connection.sendall(chunk)
                num_bytes += _MEGABYTE
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
    except OSError as error:
        return num_bytes, parse_reply(received, time.monotonic() - begin, type(error).__name__)
    return num_bytes, parse_reply(received, time.monotonic() - begin)


def _flood(service: Service, data: bytes) -> tuple[dict[int, int], list[Reply]]:
    """Ask from many connections and leave; returns how many got which status, and the refusals."""
    connections: list[socket.socket] = []
    received: dict[socket.socket, bytes] = {}
    try:
        with selectors.DefaultSelector() as selector:
            for _ in range(_FLOOD):
                connections.append(service.connect())
                connections[-1].sendall(data)
                selector.register(connections[-1], selectors.EVENT_READ)
            end = time.monotonic() + _FLOOD_S
            while len(received) < _FLOOD and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    connection = connections[connections.index(key.fileobj)]  # type: ignore[arg-type]
                    with suppress(OSError):
                        received[connection] = connection.recv(1 << 16)
                    selector.unregister(connection)
    finally:
        for connection in connections:
            connection.close()
    replies = [parse_reply(found, 0.0) for found in received.values()]
    statuses: dict[int, int] = {}
    for status in [reply.status if reply.status else -1 for reply in replies]:
        statuses[status] = statuses.get(status, 0) + 1
    if missing := _FLOOD - len(replies):
        statuses[0] = missing
    return statuses, [reply for reply in replies if reply.status in (429, 503)]


def _ask_and_never_read(service: Service, patience_s: float) -> tuple[int, float | None]:
    """Send requests and read none of the answers; returns the bytes taken, and when the server gave up."""
    data = service.head("GET", "/metrics") + b"\r\n"
    begin = time.monotonic()
    num_bytes = 0
    with service.connect(receive_buffer=2048) as connection:
        connection.settimeout(0.5)
        while time.monotonic() - begin < patience_s:
            try:
                num_bytes += connection.send(data * 50)
            except TimeoutError:
                continue  # the server has stopped reading too, as it should
            except ConnectionError:
                return num_bytes, time.monotonic() - begin
    return num_bytes, None


def _ambiguous(service: Service) -> dict[str, bytes]:
    path = COMPLETIONS
    end = b"0\r\n\r\n"
    inner = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def post(*lines: str, body: bytes = b"") -> bytes:
        return service.head("POST", path, *lines, "Connection: close") + b"\r\n" + body

    return {
        "both lengths": post("Content-Length: 6", "Transfer-Encoding: chunked", body=end + inner),
        "both lengths, turned": post("Transfer-Encoding: chunked", "Content-Length: 4", body=end + inner),
        "two lengths": post("Content-Length: 0", f"Content-Length: {len(inner)}", body=inner),
        "a list of lengths": post("Content-Length: 0, 5", body=inner),
        "a negative length": post("Content-Length: -1", body=inner),
        "a length with a sign": post("Content-Length: +5", body=b"{}   "),
        "a space before the colon": post("Content-Length : 5", body=inner),
        "an unknown coding": post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        "two codings": post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=end + inner),
        "a chunk of no size": post("Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
        "a NUL in a header": post("X: a\0b"),
        "two hosts": post("Host: localhost", "Content-Length: 0"),
        "a gzip body": post(_JSON, "Content-Encoding: gzip", "Content-Length: 3", body=b"abc"),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "a method of 100 kB": b"X" * 100_000 + b" / HTTP/1.1\r\n\r\n",
        "a path of 1 MB": service.head("GET", "/" + "x" * _MEGABYTE, "Connection: close") + b"\r\n",
        "a header of 1 MB": post("X: " + "x" * _MEGABYTE),
        "10^4 headers": post(*(f"X-{number}: y" for number in range(10_000))),
        "a boundary of 1 MB": post("Content-Type: multipart/form-data; boundary=" + "b" * _MEGABYTE),
        "a key of 1 MB": post("Cookie: " + "x" * _MEGABYTE),
    }  # fmt: skip


def _broken_json() -> dict[str, bytes]:
    question = '"messages": [{"role": "user", "content": "Hello"}]'
    deep = 100_000

    def with_field(field: str) -> bytes:
        return f"{{{question}, {field}}}".encode()

    return {
        "JSON 10^5 deep": b'{"a":' * deep + b"1" + b"}" * deep,
        "lists 10^5 deep": b"[" * deep + b"]" * deep,
        "lists 10^5 deep without an end": b"[" * deep,
        "NaN": with_field('"temperature": NaN'),
        "Infinity": with_field('"temperature": Infinity'),
        "-Infinity": with_field('"temperature": -Infinity'),
        "1e999": with_field('"temperature": 1e999'),
        "a number of 10^5 digits": with_field(f'"seed": {"9" * 100_000}'),
        "equal keys": with_field(f'"n": 1, {question}'),
        "invalid UTF-8": with_field('"user": "?"').replace(b"?", b"\xff\xfe"),
        "half a surrogate pair": with_field('"user": "\\ud800"'),
        "UTF-16": with_field('"n": 1').decode().encode("utf-16"),
        "two million items": b'{"a":[' + b"1," * 2_000_000 + b"1]}",
        "no object": b"[]",
        "nothing": b"",
        "half of it": b'{"messages": [{"role": "user", "con',
    }


def _multiparts() -> Iterator[tuple[str, str, bytes]]:
    kind = "multipart/form-data; boundary=b"
    disposition = b'Content-Disposition: form-data; name="files"; filename="'

    def part(head: bytes) -> bytes:
        return b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--\r\n"

    yield "a file name of 1 MB", kind, part(disposition + b"x" * _MEGABYTE + b'.png"')
    yield "a part's header of 1 MB", kind, part(b"X: " + b"x" * _MEGABYTE)
    yield "no parts but 1 MB of dashes", kind, b"--b\r\n" + b"-" * _MEGABYTE
    yield "a form without a boundary", "multipart/form-data", part(disposition + b'x.png"')
    quotes = "application/x-www-form-urlencoded; x=" + '"\\' * 5000
    yield "a content type of 10^4 quotes", quotes, b"x=y"
