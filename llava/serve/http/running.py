"""Start a server, wait until it is ready, and stop it: drained at the first signal, at once at the second.

listen -> run_server (on_start loads what it needs, in its own thread) -> ready -> signal -> drained
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from llava.command import EXIT_INTERRUPTED, EXIT_OK, note
from llava.errors import UnavailableError, UsageError
from llava.log import FILE_ONLY, get_logger
from llava.serve.http.access import is_loopback
from llava.serve.http.lifecycle import READY, Lifecycle
from llava.serve.http.limits import Limits

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

_logger = get_logger(__name__)

DEFAULT_DRAIN_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 512
_TRIES = 20


@dataclass(frozen=True)
class RunOptions:
    """How a server runs."""

    limits: Limits = field(default_factory=Limits)
    drain_s: float = DEFAULT_DRAIN_S
    """How long running requests may take to finish after the first signal."""


class Listener(socket.socket):
    """A listening socket, and those on the same port at the other addresses of its host."""

    others: tuple[socket.socket, ...] = ()

    def close(self) -> None:
        """Close it and the others."""
        for other in self.others:
            other.close()
        super().close()


def listen(host: str, port: int, *, or_free: bool = False) -> Listener:
    """Return a listening socket; with `or_free`, on some free port where `port` is taken.

    A name of both families, as "localhost" is, is listened to in both: clients take either. Raises UsageError
    for a host or port that cannot be used.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port", remedy="Check --host and --port.")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(
            f"{host} port {port} is no address: {error}", remedy="Check --host and --port."
        ) from None
    # One of each family, IPv4 first.
    places = sorted({family: (int(family), address) for family, _, _, _, address in reversed(found)}.values())
    try:
        return _listen_at(places, port)
    except OSError as error:
        if not (or_free and error.errno == errno.EADDRINUSE):
            raise _cannot_listen(host, port, error) from None
    for _ in range(_TRIES):
        # A port that is free in one family may be taken in the other.
        with contextlib.suppress(OSError):
            return _listen_at(places, 0)
    raise UsageError(f"no port of {host} is free", remedy="Check --host.")


def _listen_at(places: Sequence[tuple[int, Any]], port: int) -> Listener:
    """Listen at the first address, and at the others where the machine has their family; raises OSError."""
    listener = _listening(places[0], port)
    others: list[socket.socket] = []
    try:
        for place in places[1:]:
            try:
                others.append(_listening(place, listener.getsockname()[1], is_beside=True))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
    except OSError:
        for opened in (*others, listener):
            opened.close()
        raise
    listener.others = tuple(others)
    return listener


def _listening(place: tuple[int, Any], port: int, *, is_beside: bool = False) -> Listener:
    family, address = place
    listener = Listener(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_beside and family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address[0], port, *address[2:]))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {port} of {host} is taken{_by_whom(port)}",
            remedy="Give another --port, or end that process.",
        )
    return UsageError(
        f"{host} port {port} cannot be used: {error.strerror}", remedy="Check --host and --port."
    )


def _by_whom(port: int) -> str:
    """Name the process that listens on a port, where the system tells."""
    import psutil

    try:
        pids = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.pid
            if connection.laddr and connection.laddr.port == port
        }
        return "".join(f" by {psutil.Process(pid).name()} (process {pid})" for pid in sorted(pids))
    except psutil.Error:
        return ""


def url_of(listener: socket.socket, host: str) -> str:
    """Return the address under which a person on this machine opens the server."""
    port = listener.getsockname()[1]
    name = host.strip("[]")
    if name in ("", "0.0.0.0", "::"):
        name = socket.gethostname()
    elif is_loopback(name):
        name = listener.getsockname()[0]  # what "localhost" was taken for
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def run_server(
    app: ASGIApp,
    listener: Listener,
    lifecycle: Lifecycle,
    *,
    options: RunOptions | None = None,
    on_start: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> int:
    """Serve until a signal comes, and return the exit code: 0 after the first, 130 at once after a second.

    on_start: loads what the application needs, in a thread of its own; what it raises stops the server and is
    raised here. on_ready: called once requests are taken. on_stop: called when none is left, to free things.
    """
    return asyncio.run(
        _Run(app, listener, lifecycle, options or RunOptions()).serve(on_start, on_ready, on_stop)
    )


def new_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Return a uvicorn server that holds `limits` and leaves signals alone."""
    import uvicorn

    from llava.serve.http.connection import connection_class

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are `run_server`'s

    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # clients cannot fill the log with warnings
    config = uvicorn.Config(
        app,
        http=connection_class(limits),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=limits.max_header_bytes,
    )
    return Server(config)


class _Run:
    """One run of a server."""

    def __init__(self, app: ASGIApp, listener: Listener, lifecycle: Lifecycle, options: RunOptions) -> None:
        self._server = new_server(app, options.limits)
        self._listener = listener
        self._lifecycle = lifecycle
        self._options = options
        self._stop = asyncio.Event()

    async def serve(
        self,
        on_start: Callable[[], None] | None,
        on_ready: Callable[[], None] | None,
        on_stop: Callable[[], None] | None,
    ) -> int:
        loop = asyncio.get_running_loop()
        with _signals_call(self._on_signal):
            serving = loop.create_task(self._server.serve(sockets=[self._listener, *self._listener.others]))
            try:
                await self._start(serving, on_start, on_ready)
                await _first_of(self._stop.wait(), asyncio.shield(serving))
                await self._drain()
            finally:
                self._server.should_exit = True
                await serving
                if on_stop is not None:
                    await asyncio.to_thread(on_stop)
        return EXIT_OK

    async def _start(
        self,
        serving: asyncio.Task[None],
        on_start: Callable[[], None] | None,
        on_ready: Callable[[], None] | None,
    ) -> None:
        if on_start is not None:
            await _first_of(self._stop.wait(), asyncio.to_thread(on_start))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(0.01)
        if not self._stop.is_set() and self._lifecycle.state == "loading":
            self._lifecycle.state = "ready"
            _logger.info("ready", extra=FILE_ONLY)
            if on_ready is not None:
                on_ready()

    async def _drain(self) -> None:
        self._lifecycle.state = "draining"
        _logger.info("no further requests are taken", extra=FILE_ONLY)
        if self._lifecycle.num_running:
            note(f"finishing {self._lifecycle.num_running} requests; a second signal ends at once")
        try:
            await asyncio.wait_for(self._lifecycle.wait_until_idle(), self._options.drain_s)
        except asyncio.TimeoutError:
            _logger.warning("%d requests were cut off", self._lifecycle.num_running)

    def _on_signal(self) -> None:
        is_second = self._stop.is_set()
        if is_second or self._lifecycle.state == "loading":
            note("ended at once")
            _logger.info("ended at once", extra=FILE_ONLY)
            sys.stdout.flush()
            # Threads may be in the middle of loading or of a long step, and nobody waits for them any more.
            os._exit(EXIT_INTERRUPTED if is_second else EXIT_OK)
        self._stop.set()


async def _first_of(*waits: Any) -> None:
    """Wait until the first is done, and raise what it raises; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


@contextlib.contextmanager
def _signals_call(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` in the event loop for each signal that asks to stop, inside the block."""
    loop = asyncio.get_running_loop()

    def handler(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(handle)

    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def wait_until_ready(url: str, *, timeout_s: float = 60.0, headers: dict[str, str] | None = None) -> None:
    """Return when the server at `url` says that it is ready; raises UnavailableError after `timeout_s`."""
    import httpx

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url.rstrip("/") + READY, headers=headers, timeout=2.0).status_code == 200:
                return
        time.sleep(0.05)
    raise UnavailableError(f"{url} is not ready after {timeout_s:g} seconds", remedy="Look into its log.")
