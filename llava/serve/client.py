"""A client of controllers and workers, the original's and ours: what the web page and the commands talk by.

Asks for deltas, so that an answer's bytes on the wire grow with its length and not with its square; the
original's workers do not know the field and send everything so far, of which the new part is taken.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llava.engine.loop_thread import LoopThread
from llava.errors import DependencyError, RemoteError, ReportedError, RequestError, TooLargeError
from llava.serve import fields
from llava.serve.framing import FrameDecoder
from llava.serve.http.request_id import HEADER as REQUEST_ID_HEADER
from llava.serve.protocol import GenerateRequest, Registration, StreamMessage, WorkerStatus

if TYPE_CHECKING:
    import httpx
    from httpx import AsyncClient

_MAX_BODY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How long to wait, in seconds."""

    timeout_s: float = 5.0
    """For a connection, and for the answer of everything but a stream."""
    silence_s: float = 60.0
    """Between two pieces of a stream. Our workers say every few seconds that they are still there."""


class AsyncServingClient:
    """Talks to one controller, or to a worker in its place. Raises RemoteError and ReportedError.

    RemoteError: nobody answers, or not as a worker or controller does. ReportedError: they say what is wrong.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        options: ClientOptions | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`token`: the shared token or a key. `transport`: how bytes travel; None is the network."""
        self.address = address.rstrip("/")
        self.options = options or ClientOptions()
        headers = {"Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        httpx = _httpx()
        self._http: AsyncClient = httpx.AsyncClient(
            headers=headers,
            transport=transport,
            timeout=httpx.Timeout(self.options.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            # Workers and controllers are this machine or its neighbours; a proxy knows neither.
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def refresh(self) -> None:
        """Let the controller ask every worker for its status, and drop those that do not answer."""
        await self._post("/refresh_all_workers", patience_s=4 * self.options.timeout_s)

    async def models(self) -> list[str]:
        """Return the names of the models that answer."""
        found = fields.as_object(await self._post("/list_models"))
        return list(fields.texts(found, "models", max_count=1 << 16, max_length=1 << 12))

    async def templates(self) -> dict[str, str]:
        """Return the prompt template of each model, where its worker says it (the original's do not)."""
        found = fields.as_object(await self._post("/list_models")).get("templates")
        return found if isinstance(found, dict) else {}

    async def worker_address(self, model: str, *, affinity: str = "") -> str:
        """Return the address of a worker that has the model, "" where none has."""
        body = {"model": model, **({"affinity": affinity} if affinity else {})}
        return fields.text(fields.as_object(await self._post("/get_worker_address", body)), "address")

    async def status(self) -> WorkerStatus:
        """Return what is offered at the address, and how busy it is."""
        return WorkerStatus.from_json(fields.as_object(await self._post("/worker_get_status")))

    async def register(self, registration: Registration) -> None:
        """Make a worker known to the controller."""
        # A controller may call back at the worker, with a timeout like ours.
        patience_s = 3 * self.options.timeout_s
        await self._post("/register_worker", registration.to_json(), patience_s=patience_s)

    async def unregister(self, worker_name: str) -> None:
        """Take a worker out; the original's controllers do not know this."""
        await self._post("/unregister_worker", {"worker_name": worker_name})

    async def heart_beat(self, worker_name: str, queue_length: int) -> bool:
        """Say that a worker lives; returns whether the controller knows it."""
        body = {"worker_name": worker_name, "queue_length": queue_length}
        return fields.flag(fields.as_object(await self._post("/receive_heart_beat", body)), "exist")

    async def stream(
        self, request: GenerateRequest, *, address: str | None = None, request_id: str | None = None
    ) -> AsyncGenerator[StreamMessage, None]:
        """Yield an answer piece by piece, each with a `delta`; of our workers the last has the figures.

        address: of the worker to ask instead of the client's own address.
        """
        httpx = _httpx()
        url = f"{(address or self.address).rstrip('/')}/worker_generate_stream"
        body = replace(request, deltas=True).to_json()
        headers = {} if request_id is None else {REQUEST_ID_HEADER: request_id}
        silence_s = self.options.silence_s
        timeout = httpx.Timeout(silence_s, connect=self.options.timeout_s, pool=None)
        try:
            async with self._http.stream(
                "POST", url, json=body, headers=headers, timeout=timeout
            ) as response:
                if response.headers.get("content-type", "").startswith("application/json"):
                    raise _reported(response, await _read(response))
                async with aclosing(_messages(response, request.prompt)) as messages:
                    async for message in messages:
                        yield message
        except httpx.TransportError as error:
            raise _unreachable(url, error) from None

    async def _post(
        self, path: str, body: Mapping[str, Any] | None = None, *, patience_s: float | None = None
    ) -> Any:
        httpx = _httpx()
        url = self.address + path
        timeout_s = self.options.timeout_s
        timeout = httpx.Timeout(patience_s or timeout_s, connect=timeout_s, pool=None)
        try:
            async with self._http.stream("POST", url, json=body or {}, timeout=timeout) as response:
                data = await _read(response)
        except httpx.TransportError as error:
            raise _unreachable(url, error) from None
        if response.status_code != 200:
            raise _reported(response, data)
        return None if data.strip() in (b"", b"null") else fields.read_object(data)


async def _read(response: httpx.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise RemoteError(f"{response.url} sends more than was asked for", remedy="Check the address.")
    return bytes(data)


async def _messages(response: httpx.Response, prompt: str) -> AsyncGenerator[StreamMessage, None]:
    """Yield the messages of a stream as deltas; raises ReportedError, and RemoteError when it breaks off."""
    decoder, num_known, has_begun, is_complete = FrameDecoder(), len(prompt), False, False
    async for chunk in response.aiter_bytes():
        for frame in decoder.feed(chunk):
            message = _read_message(response, frame)
            if message.error_code:
                raise _told(message)
            has_begun = True
            if message.delta is None:
                text = message.text or ""
                message = replace(message, text=None, delta=text[num_known:])
                num_known = max(num_known, len(text))
                is_complete = True
            else:
                is_complete = bool(message.finish_reason)
            yield message
    if not is_complete or not decoder.is_between_frames:
        raise RemoteError(
            f"{response.url} broke off in the middle of an answer"
            if has_begun
            else f"{response.url} sent no answer",
            remedy="Ask again; the worker's log may say why.",
        )


def _read_message(response: httpx.Response, frame: bytes) -> StreamMessage:
    try:
        return StreamMessage.from_json(fields.read_object(frame))
    except (RequestError, TooLargeError) as error:
        raise RemoteError(
            f"{response.url} sends something else than an answer: {error.cause}",
            remedy="Check that a worker or controller is at this address.",
        ) from None


def _told(message: StreamMessage) -> ReportedError:
    """Return the error of a message; the original's say only a number and a sentence."""
    cause = message.cause or message.text or "The worker reports an error without words"
    return ReportedError(
        cause,
        remedy=message.remedy,
        reported_code=message.code or f"error-{message.error_code}",
        error_number=message.error_code,
        request_id=message.request_id,
    )


def _reported(response: httpx.Response, data: bytes) -> ReportedError | RemoteError:
    """Return the error of a response that is no answer."""
    try:
        told = fields.as_object(fields.read_object(data).get("error"))
        return ReportedError(
            fields.text(told, "message", max_length=1 << 16),
            remedy=fields.text(told, "remedy", default="", max_length=1 << 16),
            reported_code=fields.text(told, "code"),
            request_id=fields.text(told, "request_id", default=""),
        )
    except (RequestError, TooLargeError):
        return RemoteError(
            f"{response.url} answers with status {response.status_code}",
            remedy="Check that a worker or controller is at this address.",
        )


def _unreachable(url: str, error: httpx.TransportError) -> RemoteError:
    return RemoteError(
        f"{url} cannot be reached ({type(error).__name__})", remedy="Is it running, and is the address right?"
    )


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise DependencyError.of_extra("httpx", "serve", "talking to workers") from None
    return httpx


class ServingClient:
    """The same for code without asyncio; `with ServingClient(...) as client:` closes it."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        options: ClientOptions | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """See AsyncServingClient."""
        self._loop = LoopThread("llava-serving-client")
        self._client = AsyncServingClient(address, token=token, options=options, transport=transport)
        self._is_closed = False

    def __enter__(self) -> ServingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread; streams end here. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.run(self._client.close())
            self._loop.close()

    def refresh(self) -> None:
        """See AsyncServingClient; so with all that follow."""
        self._loop.run(self._client.refresh())

    def models(self) -> list[str]:
        """Return the names of the models that answer."""
        return self._loop.run(self._client.models())

    def templates(self) -> dict[str, str]:
        """Return the prompt template of each model, where its worker says it."""
        return self._loop.run(self._client.templates())

    def worker_address(self, model: str, *, affinity: str = "") -> str:
        """Return the address of a worker that has the model, "" where none has."""
        return self._loop.run(self._client.worker_address(model, affinity=affinity))

    def status(self) -> WorkerStatus:
        """Return what is offered at the address."""
        return self._loop.run(self._client.status())

    def register(self, registration: Registration) -> None:
        """Make a worker known to the controller."""
        self._loop.run(self._client.register(registration))

    def stream(
        self, request: GenerateRequest, *, address: str | None = None, request_id: str | None = None
    ) -> Iterator[StreamMessage]:
        """Yield an answer piece by piece."""
        messages = self._client.stream(request, address=address, request_id=request_id)
        try:
            while (message := self._loop.run(_following(messages))) is not None:
                yield message
        finally:
            if not self._is_closed:
                self._loop.run(messages.aclose())


async def _following(messages: AsyncGenerator[StreamMessage, None]) -> StreamMessage | None:
    return await anext(messages, None)
