"""Controllers, workers and clients in one process: an engine without a model, a network without sockets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from starlette.types import ASGIApp

from llava.engine.protocol import Engine, OnAnswer, Statistics
from llava.engine.pushed_stream import Counts, PushedStream
from llava.engine.request import Answer, Request
from llava.errors import ContextLengthError
from llava.serve.controller import WORKER_ROUTES, create_app
from llava.serve.dispatch import DispatchOptions
from llava.serve.http.access import FREE_PATHS, Access
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.stack import protect
from llava.serve.model_worker import create_app as create_worker_app
from llava.serve.registry import Registry
from llava.serve.request_queue import QueueOptions
from llava.serve.worker import ModelWorker
from llava.templates import ChatTemplate, get_template

T = TypeVar("T")
TOKEN = "the-shared-token-of-this-test"
CONTROLLER = "http://localhost:21001"
LONGEST = 2000
"""Characters that the engine's context holds."""


def run(coroutine: Coroutine[Any, Any, T], *, within_s: float = 20.0) -> T:
    """Run a coroutine, but not for ever."""

    async def bounded() -> T:
        return await asyncio.wait_for(coroutine, within_s)

    return asyncio.run(bounded())


class WordEngine(Engine):
    """Answers with words, one after the other; remembers its requests and their streams."""

    def __init__(self, words: Sequence[str] = ("two", " dogs"), *, delay_s: float = 0.0) -> None:
        self.words = words
        self.delay_s = delay_s
        self.failure: BaseException | None = None
        """Raised to the reader after the words."""
        self.requests: list[Request] = []
        self.streams: list[PushedStream] = []

    @property
    def name(self) -> str:
        return "words"

    @property
    def template(self) -> ChatTemplate:
        return get_template("vicuna_v1")

    def submit(self, request: Request) -> PushedStream:
        length = len(request.prompt or "")
        if length > LONGEST:
            raise ContextLengthError(f"the prompt has {length} characters", remedy="Shorten it.")
        self.requests.append(request)
        stream = PushedStream(stop=request.sampling.stop)
        self.streams.append(stream)
        threading.Thread(target=self._push, args=(stream,), daemon=True).start()
        return stream

    def _push(self, stream: PushedStream) -> None:
        stream.count(Counts(num_prompt_tokens=7, num_cached_tokens=3))
        for word in self.words:
            time.sleep(self.delay_s)
            if not stream.push(word):
                return
        if self.failure is not None:
            stream.fail(self.failure)
        stream.finish("stop")

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = 8, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        raise NotImplementedError

    def statistics(self) -> Statistics:
        return Statistics()

    def close(self) -> None:
        for stream in self.streams:
            stream.cancel()


class Network(httpx.AsyncBaseTransport):
    """Carries requests to applications by their address; there is nothing at any other address."""

    def __init__(self) -> None:
        self.apps: dict[str, ASGIApp] = {}
        self.calls: list[str] = []
        """Addresses and paths that were called, in order."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        address = f"{request.url.scheme}://{request.url.netloc.decode()}"
        self.calls.append(address + request.url.path)
        if address not in self.apps:
            raise httpx.ConnectError("nobody is there", request=request)
        return await httpx.ASGITransport(self.apps[address]).handle_async_request(request)

    def client(self, *, token: str | None = TOKEN) -> httpx.AsyncClient:
        """Return a plain client, with the token unless told otherwise."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(transport=self, headers=headers)


def guarded(app: Any, *, access: Access | None = None) -> ASGIApp:
    """Return an application with all its layers, as on a loopback address."""
    return protect(app, access or Access(), limits=Limits(), lifecycle=Lifecycle("ready"))


def add_controller(
    network: Network,
    *,
    address: str = CONTROLLER,
    registry: Registry | None = None,
    allowed_workers: frozenset[str] = frozenset(),
    keys: tuple[str, ...] = (),
) -> Registry:
    """Put a controller on the network and return its registry."""
    registry = registry or Registry()
    options = DispatchOptions(token=TOKEN, allowed_workers=allowed_workers, timeout_s=1.0, silence_s=2.0)
    app = create_app(registry, options, transport=network)
    access = Access(keys=keys, free_paths=FREE_PATHS | WORKER_ROUTES)
    network.apps[address] = guarded(app, access=access)
    return registry


def add_worker(
    network: Network,
    port: int,
    *,
    name: str = "tiny",
    engine: Engine | None = None,
    options: QueueOptions | None = None,
    takes_prompts: bool = True,
) -> ModelWorker:
    """Put a worker on the network; it is not registered anywhere yet."""
    worker = ModelWorker(options=options)
    worker.take(engine or WordEngine(), name=name, takes_prompts=takes_prompts)
    network.apps[f"http://localhost:{port}"] = guarded(create_worker_app(worker))
    return worker


def registration(
    port: int, worker: ModelWorker | None = None, *, check_heart_beat: bool = True
) -> dict[str, Any]:
    """Return the body by which a worker registers; without one, its status is to be asked for."""
    return {
        "worker_name": f"http://localhost:{port}",
        "check_heart_beat": check_heart_beat,
        "worker_status": None if worker is None else worker.status().to_json(),
    }


def frames_of(body: bytes) -> list[Any]:
    """Read a body as the original's clients do: `requests`' iter_lines by NUL, empty pieces skipped."""
    import json

    return [json.loads(piece) for piece in body.split(b"\0") if piece]


def asked(prompt: str = "USER: How many? ASSISTANT:", **more: object) -> dict[str, Any]:
    """Return a request as the original's web server sends it."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "temperature": 0.2,
        "top_p": 0.7,
        "max_new_tokens": 64,
        "stop": "</s>",
        "images": [],
    }
    return body | more


class Call:
    """One ASGI call whose client can go away, and whose body arrives piece by piece."""

    def __init__(self, app: ASGIApp, path: str, body: bytes) -> None:
        self.status = 0
        self.pieces: list[bytes] = []
        self.has_arrived = asyncio.Event()
        self._body = body
        self._leaves = asyncio.Event()
        self._is_asked = False
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
            "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http",
            "client": ("127.0.0.1", 1), "server": ("localhost", 80), "root_path": "", "state": {},
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    def leave(self) -> None:
        """Go away."""
        self._leaves.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        if piece := message.get("body"):
            self.pieces.append(piece)
            self.has_arrived.set()


async def until(condition: Callable[[], object], *, within_s: float = 5.0) -> float:
    """Wait until something is so; returns after how many seconds it was."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within_s, "it never came true"
        await asyncio.sleep(0.005)
    return time.monotonic() - begin


class OriginalWorker:
    """A worker of the original, written from its protocol: it knows no token and repeats everything."""

    def __init__(self, *, name: str = "old", answer: str = "a cat", stop: str = "</s>") -> None:
        self.name = name
        self._answer = answer + stop
        self.requests: list[dict[str, Any]] = []

    def registration(self, port: int) -> dict[str, Any]:
        status = {"model_names": [self.name], "speed": 1, "queue_length": 0}
        return {
            "worker_name": f"http://localhost:{port}",
            "check_heart_beat": True,
            "worker_status": status,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import json

        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        start = {"type": "http.response.start", "status": 200}
        if scope["path"] == "/worker_get_status":
            status = {"model_names": [self.name], "speed": 1, "queue_length": 0}
            await send(start | {"headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": json.dumps(status).encode()})
            return
        params = json.loads(body)
        self.requests.append(params)
        await send(start | {"headers": []})
        for said in self._said(params):
            frame = json.dumps({"text": params["prompt"] + said, "error_code": 0}).encode() + b"\0"
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _said(self, params: dict[str, Any]) -> Iterator[str]:
        text = ""
        for character in self._answer:
            text += character
            yield text.removesuffix(params["stop"])


@asynccontextmanager
async def calling(app: ASGIApp, path: str, body: bytes) -> AsyncIterator[Call]:
    """Make a call, and end it whatever happens."""
    call = Call(app, path, body)
    try:
        yield call
    finally:
        call.leave()
        await call.task
