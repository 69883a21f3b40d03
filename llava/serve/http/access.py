"""Who may ask: host names, web pages and keys.

A browser on this machine can be made to send requests here by any web page it shows. A page that had its own
name resolved to 127.0.0.1 betrays itself by `Host`, one that posts across sites by `Origin`; neither can be
set by a page.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from llava.errors import AccessError, AuthenticationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
EVERY_HOST: Final = "*"
FREE_PATHS: Final = frozenset({"/health", "/ready"})
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?", re.ASCII)


def is_loopback(host: str) -> bool:
    """Say whether a server that listens on `host` can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Access:
    """What a server is open to."""

    host: str = "127.0.0.1"
    """Where it listens."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which it may be called, and whose pages may call it; "*" allows every one."""
    keys: tuple[str, ...] = ()
    """Any of these opens every route; none leaves them open."""
    free_paths: frozenset[str] = FREE_PATHS
    """Need no key."""

    def names(self) -> frozenset[str]:
        """Return the names by which the server may be called."""
        own = {self.host.lower().strip("[]")}
        if not is_loopback(self.host):
            own.add(socket.gethostname().lower())
        return LOOPBACK_NAMES | own | _lowered(self.allowed_hosts)


class AccessLayer:
    """Refuses requests for other hosts, from other pages, and without the key."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._names = access.names()
        self._trusted = _lowered(access.allowed_hosts)
        # An address in place of a name cannot have been rebound, so it is fine where others may call at all.
        self._takes_addresses = not is_loopback(access.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed; raises AccessError and AuthenticationError."""
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(scope)
            except (AccessError, AuthenticationError):
                if scope["type"] == "http":
                    raise
                await send({"type": "websocket.close", "code": 1008})
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts = values_of(scope, b"host")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            raise AccessError(
                "The server is not open under this host name",
                remedy="Call it by its own name, or start it with --allow-host NAME.",
            )
        for origin in values_of(scope, b"origin"):
            if not self._trusts(origin, hosts[0]):
                raise AccessError(
                    "The server is not open to pages of this origin",
                    remedy="Open its own page, or start it with --allow-host NAME.",
                )
        if self._access.keys and scope["path"] not in self._access.free_paths:
            check_key(values_of(scope, b"authorization"), self._access.keys)

    def _knows(self, host: str) -> bool:
        if EVERY_HOST in self._names:
            return True
        parts = _split(host)
        if parts is None:
            return False
        return parts[0] in self._names or (self._takes_addresses and _is_address(parts[0]))

    def _trusts(self, origin: str, host: str) -> bool:
        if EVERY_HOST in self._trusted:
            return True
        try:
            place = urlsplit(origin)
        except ValueError:
            return False
        parts, own = _split(place.netloc), _split(host)
        if place.scheme not in ("http", "https") or parts is None or own is None:
            return False
        if parts == own or parts[0] in self._trusted:
            return True
        return parts[1] == own[1] and {parts[0], own[0]} <= LOOPBACK_NAMES


def check_key(authorizations: Sequence[str], keys: Iterable[str]) -> None:
    """Raise AuthenticationError unless one of `keys` was given, as a bearer token or a Basic password.

    Takes equally long for every wrong key.
    """
    if len(authorizations) != 1:
        raise AuthenticationError("The request has no key", remedy="Send Authorization: Bearer KEY.")
    given = _credential(authorizations[0]).encode()
    # All are compared, so that the time says nothing about which.
    matches = [hmac.compare_digest(given, key.encode()) for key in keys]
    if True not in matches:
        raise AuthenticationError("The key is not right", remedy="The server says at its start where it is.")


def values_of(scope: Scope, name: bytes) -> list[str]:
    """Return the values of a header; `name` in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _credential(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        decoded = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2]


def _split(host: str) -> tuple[str, str | None] | None:
    """Return name and port of a Host header, or None for what is none."""
    match = _HOST.fullmatch(host)
    return (match[1].strip("[]").rstrip(".").lower(), match[2]) if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _lowered(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower().strip("[]") for name in names)
