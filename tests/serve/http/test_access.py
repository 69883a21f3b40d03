"""Hosts, origins and keys."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from llava.errors import AccessError, AuthenticationError
from llava.serve.http.access import Access, AccessLayer, check_key, is_loopback

KEY = "a-key-of-some-length"


def names(path: str = "/v1/models", **headers: str) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "path": path, "headers": pairs}


async def passed(scope: Any, *_: object) -> None:
    scope["passed"] = True


def call(access: Access, scope: dict[str, Any]) -> bool:
    """Send a scope through; returns whether it arrived."""

    async def nothing(*_: object) -> Any:
        return None

    coroutine = AccessLayer(passed, access)(scope, nothing, nothing)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    return bool(scope.get("passed"))


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "localhost.:80"]
)
def test_a_server_on_loopback_is_called_by_loopback_names(host: str) -> None:
    assert call(Access(), names(host=host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example:8000",
        "localhost.evil.example",
        "192.168.1.5:8000",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "localhost@evil.example",
        "localhost:8000:1",
        "localhost ",
        "",
        "\xff",
    ],
)
def test_other_host_names_are_refused(host: str) -> None:
    with pytest.raises(AccessError, match="host name"):
        call(Access(), names(host=host))


def test_a_request_without_host_or_with_two_is_refused() -> None:
    for headers in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        with pytest.raises(AccessError):
            call(Access(), {"type": "http", "path": "/", "headers": headers})


def test_a_server_for_others_is_called_by_address_or_by_what_was_allowed() -> None:
    access = Access(host="0.0.0.0", allowed_hosts=("Chat.Example",), keys=(KEY,))
    authorization = f"Bearer {KEY}"
    assert call(access, names(host="192.168.1.5:8000", authorization=authorization))
    assert call(access, names(host="chat.example", authorization=authorization))
    with pytest.raises(AccessError):
        call(access, names(host="other.example", authorization=authorization))
    assert call(Access(allowed_hosts=("*",)), names(host="any.example"))


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.1:8000", True),
        ("http://localhost:3000", False),
        ("http://evil.example", False),
        ("http://evil.example:8000", False),
        ("null", False),
        ("file://", False),
        ("http://localhost:8000@evil.example", False),
        ("http://[", False),
        ("http://friend.example:9", True),
    ],
)
def test_pages_of_other_origins_are_refused(origin: str, is_allowed: bool) -> None:
    access = Access(allowed_hosts=("friend.example",))
    if is_allowed:
        assert call(access, names(host="localhost:8000", origin=origin))
    else:
        with pytest.raises(AccessError, match="origin"):
            call(access, names(host="localhost:8000", origin=origin))


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/metrics", "/health/", "/Health", "//health", "/nowhere"]
)
def test_every_route_but_health_needs_the_key(path: str) -> None:
    access = Access(keys=(KEY,))
    with pytest.raises(AuthenticationError, match="no key"):
        call(access, names(path, host="localhost"))
    assert call(access, names(path, host="localhost", authorization=f"Bearer {KEY}"))


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_needs_none(path: str) -> None:
    assert call(Access(keys=(KEY,)), names(path, host="localhost"))


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer  {KEY}", basic(f"anyone:{KEY}")])
def test_the_key_is_taken_as_token_or_password(given: str) -> None:
    check_key([given], ("another", KEY))


@pytest.mark.parametrize(
    "given",
    [
        "Bearer",
        "Bearer x",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        KEY,
        f"Digest {KEY}",
        "Basic !",
        basic(KEY),
        "\xff",
    ],
)
def test_a_wrong_key_is_refused(given: str) -> None:
    with pytest.raises(AuthenticationError, match="not right"):
        check_key([given], (KEY,))


def test_two_keys_at_once_are_refused() -> None:
    with pytest.raises(AuthenticationError):
        check_key([f"Bearer {KEY}"] * 2, (KEY,))


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[bytes] = []

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", noted)
    check_key([f"Bearer {KEY}"], (KEY, "another"))
    assert compared == [KEY.encode(), b"another"]


def test_a_websocket_is_closed_where_a_request_would_be_refused() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**names(host="evil.example"), "type": "websocket"}
    with pytest.raises(StopIteration):
        AccessLayer(passed, Access())(scope, None, send).send(None)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.5", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.example", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
