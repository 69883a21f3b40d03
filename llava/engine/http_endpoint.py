"""One HTTP server: connect, send, try again, read its events; every failure is one RemoteError.

Below the engines that ask a server (`http_engine`). Runs inside an asyncio loop (`loop_thread`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeVar

from llava.engine.http_faults import Fault, status_fault
from llava.engine.server_events import EventReader, EventTooLongError
from llava.errors import ConfigError, DependencyError, LlavaError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
DEFAULT_MAX_CONCURRENCY = 32
_MISSING = (404, 405, 501)
_MAX_BODY_BYTES = 4 << 20
"""Of a list of models or an error page."""


class AsError(Protocol):
    """Turns a fault into the error that people see."""

    def __call__(self, fault: Fault, url: str, /, *, secret: str | None, num_attempts: int) -> LlavaError:
        """Return the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How long to wait for a server, how often to try, and how much to ask of it at once."""

    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    """Requests under way at a time; further ones wait here."""
    max_waiting: int = 1024
    """Requests that may wait; one more is refused with EngineBusyError."""
    connect_timeout_s: float = 10.0
    """Until a connection stands."""
    first_token_timeout_s: float = 600.0
    """From sending a request to its first token: a long prompt on a CPU takes minutes."""
    token_timeout_s: float = 120.0
    """From one token to the next."""
    num_retries: int = 4
    """Further attempts after a failed connection, status 429 or 5xx, as long as nothing was answered."""
    retry_total_s: float = 60.0
    """No attempt is begun later than this after the first."""
    backoff_s: float = 0.5
    """Wait before the second attempt; doubled each time, and drawn at random between half and whole."""

    def __post_init__(self) -> None:
        for name, least in (("max_concurrency", 1), ("max_waiting", 0), ("num_retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}", remedy=f"It must be at least {least}."
                )
        for name in ("connect_timeout_s", "first_token_timeout_s", "token_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", remedy="It must be above 0.")
        for name in ("retry_total_s", "backoff_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", remedy="It must be at least 0.")


class Endpoint:
    """A server at a base URL; its coroutines raise what `as_error` makes of a fault (a RemoteError)."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        options: HttpOptions,
        transport: httpx.AsyncBaseTransport | None = None,
        as_error: AsError = Fault.to_error,
    ) -> None:
        httpx = _httpx()
        address = _address(url)
        self.url = str(address).rstrip("/")
        self._options = options
        self._secret = api_key
        self._as_error = as_error
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(
            base_url=address,
            headers=headers,
            transport=transport,
            timeout=httpx.Timeout(None, connect=options.connect_timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=options.max_concurrency),
            # A proxy cannot reach this machine's own addresses.
            trust_env=not _is_loopback(address.host),
        )

    async def get(self, path: str, *, may_be_missing: bool = False) -> str | None:
        """Return the body of a GET; with `may_be_missing`, None where the server has nothing at this path."""
        return await self._retrying(path, lambda: self._get(path, may_be_missing))

    async def events(self, path: str, body: bytes) -> AsyncGenerator[str, None]:
        """POST a JSON body and yield the data of each event of the answer."""
        response = await self._retrying(path, lambda: self._open(path, body))
        allowed_s = self._options.first_token_timeout_s
        deadline = monotonic() + allowed_s
        try:
            reader = EventReader()
            chunks = response.aiter_bytes()
            while (chunk := await self._next(chunks, deadline, allowed_s)) is not None:
                for data in reader.feed(chunk):
                    yield data
                    allowed_s = self._options.token_timeout_s
                    deadline = monotonic() + allowed_s
            for data in reader.end():
                yield data
        except EventTooLongError as error:
            fault = Fault(f"sends {error}", "Check that it is an OpenAI-compatible API.")
            raise self.error(path, fault) from None
        except Fault as fault:
            raise self.error(path, fault) from None
        finally:
            await response.aclose()

    async def post(self, path: str, body: bytes, *, read: Callable[[str], T]) -> T:
        """POST a JSON body and return what `read` makes of the answer; it raises Fault for nonsense.

        Silence and broken connections are tried again too: nothing was passed on yet.
        """

        async def attempt() -> T:
            try:
                response = await self._send("POST", path, body, self._options.first_token_timeout_s)
                return read(await self._text(response))
            except Fault as fault:
                fault.is_passing |= fault.status is None
                raise

        return await self._retrying(path, attempt)

    def error(self, path: str, fault: Fault, *, num_attempts: int = 1) -> LlavaError:
        """Return the error of a fault."""
        return self._as_error(fault, self.url + path, secret=self._secret, num_attempts=num_attempts)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _retrying(self, path: str, attempt: Callable[[], Awaitable[T]]) -> T:
        options, started, number = self._options, monotonic(), 0
        while True:
            number += 1
            try:
                return await attempt()
            except Fault as fault:
                # Jitter, so that clients that failed together do not come back together.
                wait_s = options.backoff_s * 2 ** (number - 1) * random.uniform(0.5, 1)
                wait_s = max(wait_s, fault.retry_after_s or 0.0)
                is_last = number > options.num_retries
                if not fault.is_passing or is_last or monotonic() - started + wait_s > options.retry_total_s:
                    raise self.error(path, fault, num_attempts=number) from None
            await asyncio.sleep(wait_s)

    async def _get(self, path: str, may_be_missing: bool) -> str | None:
        try:
            response = await self._send("GET", path, b"", self._options.token_timeout_s)
        except Fault as fault:
            if may_be_missing and fault.status in _MISSING:
                return None
            raise
        return await self._text(response)

    async def _open(self, path: str, body: bytes) -> httpx.Response:
        response = await self._send("POST", path, body, self._options.first_token_timeout_s)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            return response
        raise Fault(
            f"answers with {kind or 'an unnamed type'} where an event stream was asked for",
            "Check that the URL is that of an OpenAI-compatible API that can stream.",
            said=await self._text(response),
        )

    async def _send(self, method: str, path: str, body: bytes, patience_s: float) -> httpx.Response:
        """Send a request and return its response, of status 200, with the body still to be read."""
        import httpx

        request = self._client.build_request(
            method, path, content=body or None, headers={"Content-Type": "application/json"}
        )
        try:
            response = await asyncio.wait_for(self._client.send(request, stream=True), patience_s)
        except asyncio.TimeoutError:
            raise _silent(patience_s) from None
        except httpx.ConnectTimeout:
            waited = self._options.connect_timeout_s
            raise _unreachable(f"is not there: no connection in {waited:g} s") from None
        except httpx.ConnectError as error:
            raise _unreachable("cannot be reached", said=str(error)) from None
        except httpx.TransportError as error:
            raise _cut("breaks the connection before it answers", error, is_passing=True) from None
        if response.status_code == 200:
            return response
        said = await self._text(response)
        raise status_fault(response.status_code, said, response.headers.get("retry-after"))

    async def _text(self, response: httpx.Response) -> str:
        """Read a body as text, up to a limit, and close the response."""
        read = b""
        chunks = response.aiter_bytes()
        allowed_s = self._options.token_timeout_s
        deadline = monotonic() + allowed_s
        try:
            while len(read) < _MAX_BODY_BYTES:
                chunk = await self._next(chunks, deadline, allowed_s)
                if chunk is None:
                    break
                read += chunk
        finally:
            await response.aclose()
        return read.decode("utf-8", "replace")

    async def _next(self, chunks: AsyncIterator[bytes], deadline: float, allowed_s: float) -> bytes | None:
        """Return the next piece of a body, None at its end; `allowed_s` is what the deadline came from."""
        import httpx

        try:
            return await asyncio.wait_for(_next_or_none(chunks), deadline - monotonic())
        except asyncio.TimeoutError:
            raise _silent(allowed_s) from None
        except httpx.TransportError as error:
            raise _cut("breaks off in the middle of an answer", error, is_passing=False) from None


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError:
        raise DependencyError.of_extra("httpx", "remote", "asking a server") from None
    return httpx


async def _next_or_none(chunks: AsyncIterator[bytes]) -> bytes | None:
    async for chunk in chunks:
        return chunk
    return None


def _unreachable(what: str, *, said: str = "") -> Fault:
    return Fault(what, "Is it running, and is the address right?", said=said, is_passing=True)


def _silent(waited_s: float) -> Fault:
    return Fault(
        f"is silent: nothing came for {waited_s:.3g} s",
        "Look whether it is overloaded; raise the timeout if it needs so long.",
    )


def _cut(what: str, error: Exception, *, is_passing: bool) -> Fault:
    said = str(error) or type(error).__name__
    return Fault(what, "Look into the server's log.", said=said, is_passing=is_passing)


def base_address(url: str, *, default_path: str) -> str:
    """Return the base of an API whichever of its addresses was given; raises ConfigError."""
    address = _address(url)
    path = address.path.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(ending)
    return str(address.copy_with(path=path or default_path))


def _address(url: str) -> httpx.URL:
    """Read a base URL; raises ConfigError."""
    client = _httpx()
    remedy = "Write it as http://HOST:PORT/v1."
    try:
        address: httpx.URL = client.URL(url)
    except (client.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"the URL cannot be read: {error}", remedy=remedy) from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigError("the URL is not one of http or https with a host", remedy=remedy)
    if address.userinfo:
        raise ConfigError("the URL holds a name or password", remedy="Leave it out, and give an API key.")
    if address.query or address.fragment:
        raise ConfigError("the URL has a query or fragment", remedy=remedy)
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
