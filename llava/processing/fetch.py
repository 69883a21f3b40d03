"""Fetch a picture from the web without letting the address reach this machine's own network.

Place in the flow: only `images.load_image` calls this, and only where URLs were allowed. The host is resolved
once, every address it has must be public, and the connection goes to the very address that was checked (a
second look-up could answer differently). Redirects are followed a few times, each checked anew. Size and
total time are capped.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from llava.errors import ImageError, ImageLimitError

Resolver = Callable[[str, int], list[str]]
"""(host, port) -> every IP address of the host; raises OSError when there is none."""
Connector = Callable[[str, int, float], socket.socket]
"""(IP address, port, timeout in seconds) -> connected socket."""

ALLOWED_PORTS: Final = frozenset({80, 443})
MAX_REDIRECTS: Final = 3
DEFAULT_TIMEOUT_S: Final = 20.0
_CHUNK_BYTES: Final = 1 << 16
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of `host` as the system knows them."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def connect(address: str, port: int, timeout_s: float) -> socket.socket:
    """Open a TCP connection to an IP address."""
    return socket.create_connection((address, port), timeout=timeout_s)


def is_public(address: str) -> bool:
    """Say whether an IP address belongs to the public internet, also when it is wrapped in an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        wraps_ipv4 = parsed.ipv4_mapped or parsed.sixtofour or parsed.teredo or parsed in _NAT64
        if wraps_ipv4:
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def fetch_picture(
    url: str,
    max_bytes: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    resolver: Resolver = resolve,
    connector: Connector = connect,
) -> bytes:
    """Return the body behind an http(s) URL, at most `max_bytes`, in at most about `timeout_s` seconds.

    Raises ImageError for an address that is malformed, not public, not answering, or not answering with 200,
    and ImageLimitError for a body that is too large. Messages name the host as given and never the address
    behind it.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked_url(url)
        address = _public_address(parts, resolver)
        redirect, body = _get(parts, address, max_bytes, deadline, connector)
        if redirect is None:
            return body
        url = urljoin(url, redirect)
    raise ImageError(
        f"The picture's address redirects more than {MAX_REDIRECTS} times", remedy="Use its final address."
    )


def _checked_url(url: str) -> SplitResult:
    """Split a URL and refuse every spelling that two programs might read differently."""
    refusal = ImageError(
        "The picture's address is not a plain http(s) URL", remedy="Write it as https://host/path."
    )
    if not url.isascii() or re.search(r"[\x00-\x20\\\x7f]", url) or len(url) > 8192:
        raise refusal
    try:
        parts = urlsplit(url)
        port = _port(parts)
    except ValueError:
        raise refusal from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise refusal
    if port not in ALLOWED_PORTS:
        raise ImageError(
            f"Pictures are not fetched from port {port}", remedy="Only ports 80 and 443 are allowed."
        )
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)


def _public_address(parts: SplitResult, resolver: Resolver) -> str:
    host = str(parts.hostname).rstrip(".")
    try:
        addresses = resolver(host, _port(parts))
    except (OSError, UnicodeError):
        addresses = []
    if not addresses:
        raise ImageError(f"The host {host!r} of the picture is not known", remedy="Check the address.")
    # One private address among public ones is how a rebinding host looks: all must be public.
    if not all(is_public(address) for address in addresses):
        raise ImageError(
            f"The host {host!r} is not on the public internet", remedy="Give the picture's path or bytes."
        )
    return addresses[0]


def _get(
    parts: SplitResult, address: str, max_bytes: int, deadline: float, connector: Connector
) -> tuple[str | None, bytes]:
    """Send one GET; returns (redirect target, b"") or (None, body)."""
    host = str(parts.hostname)
    too_slow = ImageError(
        f"{host!r} did not send the picture in time", remedy="Download it and give its path."
    )
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise too_slow
    connection = http.client.HTTPConnection(host, _port(parts), timeout=remaining_s)
    # A socket timeout starts anew with every byte; only closing it from outside bounds the whole exchange.
    watchdog = threading.Timer(remaining_s, _shut, (connection,))
    watchdog.daemon = True
    try:
        connection.sock = connector(address, _port(parts), remaining_s)
        watchdog.start()
        if parts.scheme == "https":
            # The handshake comes after the assignment, so that the watchdog reaches the socket that waits in
            # it.
            connection.sock = ssl.create_default_context().wrap_socket(
                connection.sock, server_hostname=host.rstrip("."), do_handshake_on_connect=False
            )
            connection.sock.do_handshake()
        answer = _exchange(connection, parts, max_bytes)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise too_slow from None
        raise ImageError(
            f"The picture cannot be fetched from {host!r}", remedy="Check the address."
        ) from None
    finally:
        watchdog.cancel()
        connection.close()
    # A body without a length ends quietly when the watchdog cuts it.
    if time.monotonic() >= deadline:
        raise too_slow
    return answer


def _shut(connection: http.client.HTTPConnection) -> None:
    try:
        connection.sock.shutdown(socket.SHUT_RDWR)
    except (OSError, AttributeError):
        return  # Already closed: nothing is waiting any more.


def _exchange(
    connection: http.client.HTTPConnection, parts: SplitResult, max_bytes: int
) -> tuple[str | None, bytes]:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
    with connection.getresponse() as response:
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            return location, b""
        if response.status != 200:
            raise ImageError(
                f"{parts.hostname!r} answered {response.status} instead of a picture",
                remedy="Check the address.",
            )
        too_large = ImageLimitError(
            f"The picture at {parts.hostname!r} is over the limit of {max_bytes / 2**20:.1f} MiB",
            remedy="Use a smaller picture.",
        )
        if response.length is not None and response.length > max_bytes:
            raise too_large
        body = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > max_bytes:
                raise too_large
        if response.length:
            raise http.client.IncompleteRead(bytes(body), response.length)
    return None, bytes(body)
