"""Fetching pictures: private addresses are never contacted; no server can stall us or fill the memory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from llava.errors import ImageError, ImageLimitError
from llava.processing.fetch import fetch_picture, is_public

PUBLIC = "93.184.216.34"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def public_resolver(_host: str, _port: int) -> list[str]:
    return [PUBLIC]


def no_connector(address: str, _port: int, _timeout_s: float) -> socket.socket:
    raise AssertionError(f"{address} was contacted")


@contextmanager
def serving(*answers: bytes, pause_s: float = 0.0) -> Iterator[Callable[[str, int, float], socket.socket]]:
    """Yield a connector whose far ends give these answers in turn, byte by byte if `pause_s` is set."""
    remaining = list(answers)
    far_ends: list[socket.socket] = []

    def answer(far: socket.socket, data: bytes) -> None:
        try:
            far.recv(65536)
            for piece in [data] if not pause_s else [bytes([byte]) for byte in data]:
                far.sendall(piece)
                time.sleep(pause_s)
            if not pause_s:
                far.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def connector(address: str, _port: int, timeout_s: float) -> socket.socket:
        assert is_public(address)
        near, far = socket.socketpair()
        near.settimeout(timeout_s)
        far_ends.append(far)
        threading.Thread(target=answer, args=(far, remaining.pop(0)), daemon=True).start()
        return near

    try:
        yield connector
    finally:
        for far in far_ends:
            far.close()


def test_a_body_is_fetched_with_or_without_a_length() -> None:
    with serving(ANSWER, b"HTTP/1.1 200 OK\r\n\r\nhello") as connector:
        for _ in range(2):
            body = fetch_picture("http://a.example/x?y", 100, resolver=public_resolver, connector=connector)
            assert body == b"hello"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "nonsense",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_never_contacted(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address]):
        with pytest.raises(ImageError, match="not on the public internet") as caught:
            fetch_picture(
                "http://a.example/", 9, resolver=lambda *_, found=addresses: found, connector=no_connector
            )
        assert address not in str(caught.value)


def test_a_name_is_looked_up_once_and_the_address_that_was_checked_is_called() -> None:
    answers, called = iter([[PUBLIC], ["127.0.0.1"]]), []

    with serving(b"HTTP/1.1 200 OK\r\n\r\nhello") as connector:

        def noted(address: str, port: int, timeout_s: float) -> socket.socket:
            called.append(address)
            return connector(address, port, timeout_s)

        fetch_picture("http://a.example/", 9, resolver=lambda *_: next(answers), connector=noted)
    assert called == [PUBLIC]
    assert next(answers) == ["127.0.0.1"]


def test_public_addresses_are_public() -> None:
    assert is_public(PUBLIC)
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://[::1]/",
        "http://localhost/", "http://localhost./",
    ],
)  # fmt: skip
def test_spellings_of_this_machine_are_refused_by_the_real_resolver(url: str) -> None:
    with pytest.raises(ImageError):
        fetch_picture(url, 9, connector=no_connector)


@pytest.mark.parametrize(
    "url",
    [
        "http://good\\@bad.example/", "http://user@bad.example/", "http://user:pw@bad.example/", "http:///x",
        "http://a.example/a b", "http://a.example/\r\nX: y", "http://[bad/", "http://a.example:99999/",
        "ftp://a.example/", "http://ex\u00e4mple.org/",
    ],
)  # fmt: skip
def test_ambiguous_urls_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match="not a plain"):
        fetch_picture(url, 9, resolver=public_resolver, connector=no_connector)


def test_other_ports_are_refused() -> None:
    with pytest.raises(ImageError, match="port 22"):
        fetch_picture("http://a.example:22/", 9, resolver=public_resolver, connector=no_connector)


def test_an_unknown_host_is_said_to_be_unknown() -> None:
    with pytest.raises(ImageError, match="not known"):
        fetch_picture("http://a.example/", 9, resolver=lambda *_: [], connector=no_connector)


def test_redirects_are_followed_and_checked_anew() -> None:
    to_other = b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"
    to_private = b"HTTP/1.1 302 Found\r\nLocation: http://inside.example/\r\n\r\n"
    to_file = b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"

    def resolver(host: str, _port: int) -> list[str]:
        return ["10.0.0.1"] if host == "inside.example" else [PUBLIC]

    with serving(to_other, ANSWER, to_private, to_file, *[to_other] * 4) as connector:
        assert fetch_picture("http://a.example/", 9, resolver=resolver, connector=connector) == b"hello"
        for message in ("not on the public internet", "not a plain", "redirects more than 3"):
            with pytest.raises(ImageError, match=message):
                fetch_picture("http://a.example/", 9, resolver=resolver, connector=connector)


def test_a_body_over_the_limit_is_refused_announced_or_not() -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1 << 20)
    with serving(ANSWER, endless) as connector:
        for _ in range(2):
            with pytest.raises(ImageLimitError, match="over the limit"):
                fetch_picture("http://a.example/", 4, resolver=public_resolver, connector=connector)


def test_an_error_answer_and_a_cut_body_are_refused() -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"
    with serving(b"HTTP/1.1 404 Not Found\r\n\r\n<script>", cut, b"no http at all\r\n\r\n") as connector:
        for message in ("answered 404", "cannot be fetched", "cannot be fetched"):
            with pytest.raises(ImageError, match=message) as caught:
                fetch_picture("http://a.example/", 99, resolver=public_resolver, connector=connector)
            assert "script" not in str(caught.value)


@pytest.mark.parametrize("answer", [ANSWER + bytes(500), b"HTTP/1.1 200 OK\r\n\r\n" + bytes(500), b"X" * 500])
def test_a_server_that_drips_is_given_up_in_time(answer: bytes) -> None:
    started = time.monotonic()
    slow = answer.replace(b"Content-Length: 5\r\n", b"Content-Length: 505\r\n")
    with serving(slow, pause_s=0.02) as connector, pytest.raises(ImageError, match="in time"):
        fetch_picture("http://a.example/", 999, timeout_s=0.3, resolver=public_resolver, connector=connector)
    assert time.monotonic() - started < 3
