"""Starting and stopping: ports, readiness, draining, and the second signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx
import pytest

from llava.errors import AccessError, UnavailableError, UsageError
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.running import listen, run_server, url_of, wait_until_ready
from tests.serve.servers import error_of

PROGRAM = """
import asyncio, sys, time
from llava.errors import CheckpointError
from llava.serve.http.access import Access
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.running import RunOptions, listen, run_server, url_of
from llava.serve.http.stack import new_app, protect

load_s, drain_s = float(sys.argv[1]), float(sys.argv[2])
app = new_app()

@app.get("/slow")
async def slow(s: float) -> str:
    await asyncio.sleep(s)
    return "done"

lifecycle = Lifecycle()
listener = listen("127.0.0.1", 0)
print(url_of(listener, "127.0.0.1"), flush=True)
code = run_server(
    protect(app, Access(), limits=Limits(), lifecycle=lifecycle), listener, lifecycle,
    options=RunOptions(drain_s=drain_s),
    on_start=lambda: time.sleep(load_s),
    on_ready=lambda: print("ready", flush=True),
    on_stop=lambda: print("stopped", flush=True),
)
sys.exit(code)
"""


class Started(NamedTuple):
    process: subprocess.Popen[str]
    url: str

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def started(*, load_s: float = 0, drain_s: float = 10) -> Iterator[Started]:
    command = [sys.executable, "-c", PROGRAM, str(load_s), str(drain_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Started(process, process.stdout.readline().strip())
        finally:
            process.kill()


def slow(url: str, seconds: float, found: list[object]) -> threading.Thread:
    def get() -> None:
        try:
            found.append(httpx.get(f"{url}/slow", params={"s": seconds}, timeout=10).text)
        except httpx.HTTPError as error:
            found.append(type(error))

    thread = threading.Thread(target=get)
    thread.start()
    time.sleep(0.3)
    return thread


def test_a_server_that_loads_says_so_and_then_answers() -> None:
    with started(load_s=1.0) as server:
        health = httpx.get(f"{server.url}/health")
        assert health.json() == {"status": "ok", "state": "loading"}
        for path in ("/ready", "/slow?s=0"):
            response = httpx.get(server.url + path)
            assert (response.status_code, error_of(response)["code"]) == (503, "unavailable")
            assert response.headers["retry-after"] == "2"
        wait_until_ready(server.url, timeout_s=10)
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
        assert httpx.get(f"{server.url}/slow?s=0").json() == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_refuses_what_is_new(number: signal.Signals) -> None:
    with started() as server:
        wait_until_ready(server.url)
        found: list[object] = []
        thread = slow(server.url, 1.0, found)
        server.process.send_signal(number)
        time.sleep(0.2)
        refused = httpx.get(f"{server.url}/slow?s=0")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")
        assert "retry-after" in refused.headers
        assert httpx.get(f"{server.url}/health").json()["state"] == "draining"
        thread.join()
        assert found == ['"done"']
        assert server.process.wait(10) == 0
        assert [server.line(), server.line()] == ["ready", "stopped"]


def test_what_does_not_finish_in_time_is_cut_off() -> None:
    with started(drain_s=0.5) as server:
        wait_until_ready(server.url)
        found: list[object] = []
        thread = slow(server.url, 30, found)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.perf_counter() - start < 6
        thread.join()
        assert len(found) == 1
        assert found != ['"done"']


def test_the_second_signal_ends_at_once() -> None:
    with started(drain_s=30) as server:
        wait_until_ready(server.url)
        thread = slow(server.url, 30, [])
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 130
        assert time.perf_counter() - start < 1
        thread.join()


def test_a_signal_while_loading_ends_at_once() -> None:
    with started(load_s=30) as server:
        httpx.get(f"{server.url}/health")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0


def test_what_loading_raises_is_raised() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError((scope, receive, send))

    def fail() -> None:
        raise AccessError("no model")

    stopped: list[bool] = []
    with listen("127.0.0.1", 0) as listener, pytest.raises(AccessError, match="no model"):
        run_server(app, listener, Lifecycle(), on_start=fail, on_stop=lambda: stopped.append(True))
    assert stopped == [True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_taken_port_is_named_with_its_process_or_another_one_is_found() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"port {port} of 127.0.0.1 is taken by .* \(process {os.getpid()}\)"
        ):
            listen("127.0.0.1", port)
        with listen("127.0.0.1", port, or_free=True) as second:
            assert second.getsockname()[1] not in (port, 0)


@pytest.mark.parametrize(
    ("host", "port"), [("no.such.host.invalid", 8000), ("127.0.0.1", 99999), ("8.8.8.8", 8000)]
)
def test_an_address_that_cannot_be_used_is_a_usage_error(host: str, port: int) -> None:
    with pytest.raises(UsageError, match="Check --host and --port"):
        listen(host, port)


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_name_of_both_families_is_listened_to_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        (family, socket.SOCK_STREAM, 6, "", (address, 0))
        for family, address in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with listen("localhost", 0) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockname()[0] == "127.0.0.1"  # what clients without IPv6 find
        for family, _, _, _, (address, _) in both[0 if listener.others else 1 :]:
            with socket.socket(family) as client:
                client.connect((address, port))
        assert listener.others or not has_ipv6_loopback()
        with pytest.raises(UsageError, match=f"port {port} of localhost is taken"):
            listen("localhost", port)
    assert all(other.fileno() == -1 for other in listener.others)


def test_the_url_is_one_that_a_person_can_open() -> None:
    with listen("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener, "0.0.0.0") == f"http://{socket.gethostname()}:{port}"
        assert url_of(listener, "chat.example") == f"http://chat.example:{port}"
    with listen("localhost", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener, "localhost") in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")


def test_waiting_for_a_server_ends() -> None:
    with listen("127.0.0.1", 0) as listener:
        url = url_of(listener, "127.0.0.1")
    with pytest.raises(UnavailableError, match=r"not ready after 0\.2 seconds"):
        wait_until_ready(url, timeout_s=0.2)
