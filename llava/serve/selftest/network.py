"""Attacks on who may ask, and on whom the deployment can be made to call (A1, A2, A3, A5, A6, A7)."""

from __future__ import annotations

import base64
import socket
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from llava.serve.selftest.canary import Canary
from llava.serve.selftest.outcome import NotApplicableError, Trial
from llava.serve.selftest.service import Reply, Service
from llava.serve.selftest.target import COMPLETIONS, GENERATE, Target

WORKER_ROUTES: Final = ("/register_worker", "/unregister_worker", "/receive_heart_beat", "/list_workers")
CONTROLLER_ROUTES: Final = (
    "/list_models", "/refresh_all_workers", "/get_worker_address", "/worker_get_status", GENERATE,
)  # fmt: skip
API_ROUTES: Final = (
    ("GET", "/"), ("GET", "/v1/models"), ("GET", "/v1/models/x"), ("POST", COMPLETIONS), ("GET", "/metrics"),
    ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json"), ("GET", "/no-such-route"),
    ("GET", "/config"), ("GET", "/theme.css"), ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/startup-events"),
    ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/queue/data"),
    ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/file=/etc/passwd"), ("POST", "/upload"),
    ("GET", "//v1/models"), ("GET", "/health/../v1/models"), ("GET", "/health%2f..%2fv1/models"),
    ("GET", "/ready/x"), ("OPTIONS", "/v1/models"), ("HEAD", "/v1/models"),
)  # fmt: skip
_PAIRS: Final = 40
_LATER_OF: Final = 38
"""Of 40 pairs; by chance, as many come about once in a billion."""
_MEASURABLE_S: Final = 0.0003


def register_without_token(target: Target) -> Iterator[Trial]:
    """A1: a worker that does not prove the token is refused, and nobody is called."""
    controller = target.need_controller()
    token = str(controller.key)
    proofs = {
        "no token": {},
        "a wrong token": {"Authorization": "Bearer " + "x" * len(token)},
        "an empty token": {"Authorization": "Bearer"},
        "the token cut short": {"Authorization": f"Bearer {token[:-1]}"},
        "the token as another scheme": {"Authorization": f"Digest {token}"},
        "the token as a field": {"X-Token": token},
    }
    with Canary() as canary:
        for what, headers in proofs.items():
            for route in WORKER_ROUTES:
                reply = controller.post(route, _worker(canary.port), has_key=False, **headers)
                yield Trial(f"{route} with {what}", reply.seen, reply.status == 401)
        yield _calls(canary, "the worker's address")
        # The same with the token is called: the listener would have seen the others too.
        reply = controller.post("/register_worker", _worker(canary.port))
        was_called = canary.num_calls() > 0
        yield Trial(
            "control: the token opens the way", "control called" if was_called else reply.seen, was_called
        )


def register_hostile_addresses(target: Target) -> Iterator[Trial]:
    """A2: addresses that lead elsewhere than they seem are refused, without the token and with it."""
    controller = target.need_controller()
    with ExitStack() as stack:
        addresses, canaries = hostile_addresses(stack)
        for what, address in addresses.items():
            body = {"worker_name": address, "check_heart_beat": True, "worker_status": None}
            reply = controller.post("/register_worker", body, has_key=False)
            yield Trial(f"{what} without the token", reply.seen, reply.is_refused)
        for canary in canaries:
            yield _calls(canary, "the addresses")
        for what, address in addresses.items():
            if what not in NEIGHBOURS:
                body = {"worker_name": address, "check_heart_beat": True, "worker_status": None}
                reply = controller.post("/register_worker", body)
                yield Trial(f"{what} with the token", reply.seen, reply.is_refused and reply.seconds < 2)
        for canary in canaries[:2]:
            yield _calls(canary, "the addresses")
        # A worker may be a neighbour, but may not send the controller on to another one.
        reply = controller.post("/register_worker", _worker(canaries[2].port))
        yield Trial("a worker that redirects", reply.seen, reply.is_refused)
        yield _calls(canaries[0], "where it redirects")


def fetch_hostile_addresses(target: Target) -> Iterator[Trial]:
    """A3: no picture is fetched from this machine or its network, and no file is read."""
    with ExitStack() as stack:
        addresses, canaries = hostile_addresses(stack)
        for what, address in addresses.items():
            reply = target.ask("What is this?", picture=address)
            yield Trial(what, reply.seen, reply.is_refused)
        for what, text in {"a path": "/etc/passwd", "a relative path": "../../../../etc/passwd"}.items():
            reply = target.ask("What is this?", picture=text)
            yield Trial(what, reply.seen, reply.is_refused)
        if target.controller is not None:
            for what, address in addresses.items():
                frame = target.generate("USER: <image>\nWhat? ASSISTANT:", [address])
                is_refused = bool(frame.get("error_code"))
                yield Trial(f"{what} by the controller", str(frame.get("code", "answered")), is_refused)
        for canary in canaries:
            yield _calls(canary, "the addresses")


def ask_without_key(target: Target) -> Iterator[Trial]:
    """A5: every route wants the key, those that do not exist too; health says nothing else."""
    if not target.needs_key and target.api.key is None:
        raise NotApplicableError("the server has no key, so only this machine may ask it")
    for method, path in API_ROUTES:
        reply, _ = target.api.exchange(_without_key(target.api, method, path))
        yield Trial(f"{method} {path} without a key", f"{reply.status}", reply.status == 401)
    for path in ("/health", "/ready"):
        reply = target.api.send("GET", path, has_key=False)
        yield Trial(f"{path} without a key", reply.seen, reply.status == 200)
    controller = target.controller
    if controller is not None and controller.post("/list_models", {}, has_key=False).status == 401:
        for path in CONTROLLER_ROUTES:
            reply = controller.post(path, {}, has_key=False)
            yield Trial(f"{path} of the controller", reply.seen, reply.status == 401)


def time_wrong_keys(target: Target) -> Iterator[Trial]:
    """A6: a wrong key is refused, and takes equally long however much of it is right."""
    service, path = target.api, "/v1/models"
    if service.key is None and target.controller is not None:
        service, path = target.controller, "/list_workers"
    if service.key is None:
        raise NotApplicableError("the server has no key, so there is none to guess")
    key = service.key
    wrong = {
        "one letter less": key[:-1],
        "one letter more": key + "x",
        "the other case": key.swapcase(),
        "no ASCII": "\xfc" * len(key),
        "16 kB": "x" * 16_000,
        "Basic with a wrong password": "",
    }
    for what, guess in wrong.items():
        proof = f"Bearer {guess}" if guess else "Basic " + base64.b64encode(b"user:x").decode()
        reply = _with_key(service, path, proof)
        yield Trial(what, reply.seen, reply.status == 401)
    nearly, nothing = key[:-1] + "\x7e", "\x7e" * len(key)
    pairs = [
        [_with_key(service, path, f"Bearer {guess}").seconds for guess in (nearly, nothing)]
        for _ in range(_PAIRS)
    ]
    num_later = sum(first > second for first, second in pairs)
    difference_s = statistics.median(first - second for first, second in pairs)
    tells = num_later >= _LATER_OF and difference_s > _MEASURABLE_S
    seen = f"right beginnings take {difference_s * 1000:.1f} ms longer" if tells else "equal times"
    yield Trial(f"{_PAIRS} pairs of keys, all right but the last letter and all wrong", seen, not tells)


def ask_from_a_web_page(target: Target) -> Iterator[Trial]:
    """A7: pages of other sites, and names that were made to point here, are refused."""
    for service in target.services:
        path, method = ("/v1/models", "GET") if service is target.api else ("/list_models", "POST")
        hosts = (
            "evil.example",
            f"127.0.0.1.evil.example:{service.port}",
            "localhost.evil.example",
            "127.0.0.1@evil",
        )
        for host in hosts:
            reply = service.send(method, path, headers={"Host": host})
            yield Trial(f"{path} as {host}", reply.seen, reply.status in (400, 403))
        origins = (
            "http://evil.example", "null", f"http://{service.host}.evil.example",
            f"http://localhost:{service.port + 1}",
            f"http://{service.host}:{service.port}@evil.example",
        )  # fmt: skip
        for origin in origins:
            reply = service.send(method, path, headers={"Origin": origin})
            may_read = "access-control-allow-origin" in reply.headers
            yield Trial(f"{path} from {origin}", reply.seen, reply.status == 403 and not may_read)
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        reply = service.send("OPTIONS", path, headers=asked, has_key=False)
        may_read = "access-control-allow-origin" in reply.headers
        yield Trial("a page asks beforehand", reply.seen, reply.is_refused and not may_read)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        body = b'{"model": "x", "messages": [{"role": "user", "content": "Hello"}]}'
        reply = target.api.send("POST", COMPLETIONS, content=body, headers={"Content-Type": kind})
        yield Trial(f"a form of kind {kind}", reply.seen, reply.is_refused)


NEIGHBOURS: Final = ("this machine", "its name", "its own name", "IPv6 loopback", "a port", "a redirect")
"""Where a worker with the token may well be."""


def hostile_addresses(stack: ExitStack) -> tuple[dict[str, str], list[Canary]]:
    """Return addresses that lead to listeners of ours or to where nobody may look, and the listeners.

    The second is on IPv6 where this machine has it, the third redirects to the first.
    """
    canary = stack.enter_context(Canary())
    try:
        second = stack.enter_context(Canary("::1"))
    except OSError:
        second = stack.enter_context(Canary())
    third = stack.enter_context(Canary(redirect_to=f"http://127.0.0.1:{canary.port}/"))
    port = canary.port
    addresses = {
        "metadata of a cloud": "http://169.254.169.254/latest/meta-data/",
        "metadata, IPv6": "http://[fe80::a9fe:a9fe]/",
        "a file": "file:///etc/passwd",
        "gopher": f"gopher://127.0.0.1:{port}/_x",
        "ftp": f"ftp://127.0.0.1:{port}/x",
        "this machine": f"http://127.0.0.1:{port}",
        "its name": f"http://localhost:{port}",
        "its own name": f"http://{socket.gethostname()}:{port}",
        "a trailing dot": f"http://localhost.:{port}",
        "IPv6 loopback": f"http://[::1]:{second.port}",
        "IPv6-mapped": f"http://[::ffff:127.0.0.1]:{port}",
        "decimal": f"http://2130706433:{port}",
        "hexadecimal": f"http://0x7f000001:{port}",
        "octal": f"http://0177.0.0.1:{port}",
        "short": f"http://127.1:{port}",
        "all interfaces": f"http://0.0.0.0:{port}",
        "userinfo": f"http://good.example@127.0.0.1:{port}",
        "a backslash": f"http://good.example\\@127.0.0.1:{port}",
        "a fragment": f"http://127.0.0.1:{port}#@good.example",
        "a tab": f"http://127.0.0.1:\t{port}",
        "a line break": f"http://127.0.0.1:{port}/\r\nX: y",
        "a port": "http://127.0.0.1:22",
        "a redirect": f"http://127.0.0.1:{third.port}",
    }
    return addresses, [canary, second, third]


def _calls(canary: Canary, what: str) -> Trial:
    num_calls = canary.num_calls()
    return Trial(f"who called {what}", f"{num_calls} connections opened", num_calls == 0)


def _worker(port: int) -> dict[str, object]:
    return {
        "worker_name": f"http://127.0.0.1:{port}",
        "check_heart_beat": True,
        "worker_status": None,
        "queue_length": 0,
    }


def _without_key(service: Service, method: str, path: str) -> bytes:
    bare = Service(service.url, None, timeout_s=service.timeout_s)
    try:
        return bare.head(method, path, "Content-Length: 0", "Connection: close") + b"\r\n"
    finally:
        bare.close()


def _with_key(service: Service, path: str, proof: str) -> Reply:
    method = "GET" if path.startswith("/v1/") else "POST"
    return service.send(method, path, headers={"Authorization": proof}, has_key=False)
