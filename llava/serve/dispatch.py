"""The controller's work over the network: registering workers, asking for their status, passing answers on.

The registry decides; this carries out. A worker's address is called only when the request that named it
proved the shared token, or when the operator allowed the address: nobody else makes the controller call one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.errors import (
    AuthenticationError,
    LlavaError,
    NotFoundError,
    RegistrationError,
    RemoteError,
    ReportedError,
    RequestError,
    ServerBusyError,
    TooLargeError,
    UnavailableError,
    WorkerLostError,
)
from llava.log import get_logger
from llava.serve.client import AsyncServingClient, ClientOptions
from llava.serve.framing import FrameDecoder
from llava.serve.http.request_id import HEADER as REQUEST_ID_HEADER
from llava.serve.prompt_reading import first_question
from llava.serve.protocol import GenerateRequest, Registration, WorkerStatus, affinity_of
from llava.serve.registry import Registry, Worker

if TYPE_CHECKING:
    import httpx

    from llava.serve.frames import Frames

_logger = get_logger(__name__)

HOPS_HEADER = "X-Llava-Hops"
MAX_HOPS = 8
"""Controllers on the way of one request; more of them are a circle."""
_REFUSED = {429: ServerBusyError, 503: UnavailableError}
_ASK_AGAIN = "Ask again; another worker takes over where there is one."


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """How workers are called."""

    token: str
    """Shared with the workers; sent to those that proved it."""
    allowed_workers: frozenset[str] = frozenset()
    """Addresses that may register without the token: the original's workers, which know none."""
    timeout_s: float = 5.0
    """For a connection to a worker, and for its status."""
    silence_s: float = 60.0
    """Between two pieces of an answer of the original's workers, which give no sign of life meanwhile. Ours
    give one every few seconds, and have the time after which the registry forgets a silent worker."""


class _Refusal(Exception):
    """A worker took nothing on: another one may be asked."""

    def __init__(self, error: LlavaError, *, is_gone: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_gone = is_gone


class Dispatcher:
    """Calls the workers of a registry."""

    def __init__(
        self,
        registry: Registry,
        options: DispatchOptions,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport`: how bytes travel; None is the network."""
        import httpx

        self.registry = registry
        self.options = options
        self._transport = transport
        self._refreshing: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
            transport=transport,
            timeout=httpx.Timeout(options.silence_s, connect=options.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def check_worker(self, address: str, *, has_token: bool) -> None:
        """Raise AuthenticationError unless a worker may say something about `address`."""
        if not has_token and address not in self.options.allowed_workers:
            raise AuthenticationError(
                "A worker must prove the controller's token",
                remedy="Give it the controller's token file (--token-file), or start the controller with "
                "--allow-worker ADDRESS.",
            )

    async def register(self, registration: Registration, *, has_token: bool) -> None:
        """Take a worker in; raises AuthenticationError, and RegistrationError when it does not answer there.

        The original's workers register before they can answer, so those are not called back.
        """
        address = registration.worker_name
        self.check_worker(address, has_token=has_token)
        status = registration.worker_status
        if status is None or status.instance:
            answered = await self._status(address, has_token=has_token)
            if status is not None and answered.instance != status.instance:
                raise RegistrationError(
                    "Another worker answers at the address that this one gives",
                    remedy="Give each worker its own --port and --worker-address.",
                )
            status = status or answered
        is_new = self.registry.find(address) is None
        self.registry.register(
            address, status, check_heart_beat=registration.check_heart_beat, knows_token=has_token
        )
        if is_new:
            _logger.info("worker %s registered: %s", address, ", ".join(status.model_names))

    async def refresh(self) -> None:
        """Ask every worker for its status, all at once, and drop those that do not answer."""
        if self._refreshing is None or self._refreshing.done():
            # Who asks in the meantime waits for the same round.
            self._refreshing = asyncio.create_task(self._ask_everyone())
        await asyncio.shield(self._refreshing)

    async def frames(
        self, request: GenerateRequest, body: bytes, *, request_id: str, num_hops: int
    ) -> Frames:
        """Yield a worker's answer to `body`, frame by frame; raises LlavaErrors before or between them.

        A worker that takes nothing on is passed over for another one. Once it may have begun it is not: the
        request itself could be what ends workers.
        """
        if num_hops >= MAX_HOPS:
            raise RequestError(
                f"the request went over {MAX_HOPS} controllers",
                remedy="Look for a controller that is registered with itself.",
            )
        tried: set[str] = set()
        refusal: LlavaError | None = None
        affinity = self._affinity(request)
        while True:
            worker = self.registry.choose(request.model, affinity=affinity, excluded=tried)
            if worker is None:
                raise refusal or self._no_worker(request.model)
            tried.add(worker.address)
            headers = self._headers(worker, request_id) | {HOPS_HEADER: str(num_hops + 1)}
            try:
                async with aclosing(self._pass_on(worker, body, headers)) as frames:
                    async for frame in frames:
                        yield frame
                return
            except _Refusal as refused:
                refusal = refused.error
                if refused.is_gone:
                    self._drop(worker.address, "cannot be reached")
            except WorkerLostError:
                if self.registry.find(worker.address) is worker:
                    await self._look_after(worker)
                raise

    async def _pass_on(
        self, worker: Worker, body: bytes, headers: dict[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """Yield whole frames only, so that an error can follow; raises _Refusal and WorkerLostError."""
        import httpx

        decoder = FrameDecoder()
        url = f"{worker.address}/worker_generate_stream"
        timeout = httpx.Timeout(self._patience_s(worker), connect=self.options.timeout_s, pool=None)
        try:
            async with self._http.stream(
                "POST", url, content=body, headers=headers, timeout=timeout
            ) as response:
                if (refused := _REFUSED.get(response.status_code)) is not None:
                    raise _Refusal(
                        refused("No worker is free", remedy="Try again in a moment."), is_gone=False
                    )
                if response.headers.get("content-type", "").startswith("application/json"):
                    _logger.error(
                        "request %s: worker %s answers with status %d",
                        headers[REQUEST_ID_HEADER],
                        worker.address,
                        response.status_code,
                    )
                    raise WorkerLostError("The worker does not take requests of this controller")
                async for chunk in response.aiter_raw():
                    for frame in decoder.feed(chunk):
                        yield frame + b"\0"
        except (httpx.ConnectError, httpx.ConnectTimeout):
            error = WorkerLostError("The worker cannot be reached", remedy=_ASK_AGAIN)
            raise _Refusal(error, is_gone=True) from None
        except (httpx.TransportError, RequestError) as error:
            name = headers[REQUEST_ID_HEADER]
            _logger.warning("request %s: worker %s: %s", name, worker.address, type(error).__name__)
            if isinstance(error, httpx.TimeoutException) and worker.status.instance:
                # It is frozen, and asking it would only keep its client waiting; alive, it registers again.
                self._drop(worker.address, f"silent for {self._patience_s(worker):g} s in an answer")
            raise WorkerLostError(
                "The worker broke off in the middle of the answer", remedy=_ASK_AGAIN
            ) from None
        if not decoder.is_between_frames:
            raise WorkerLostError("The worker broke off in the middle of the answer", remedy=_ASK_AGAIN)

    def _patience_s(self, worker: Worker) -> float:
        """Return how long a worker may say nothing while it answers."""
        from llava.serve.frames import KEEP_ALIVE_S

        if not worker.status.instance:
            return self.options.silence_s
        # A busy worker is silent between two signs of life, however soon a registry forgets one.
        return max(2 * KEEP_ALIVE_S, min(self.options.silence_s, self.registry.options.expiry_s))

    def _affinity(self, request: GenerateRequest) -> str:
        if len(self.registry.workers) < 2:
            return ""
        words = "" if request.images else first_question(request.prompt)
        return affinity_of(request.model, request.images, words) if request.images or words else ""

    def _no_worker(self, model: str) -> NotFoundError:
        names = self.registry.models()
        shown = f"{', '.join(names[:8])}{' and more' if len(names) > 8 else ''}"
        return NotFoundError(
            f"No worker has the model {model[:80]!r}",
            remedy=f"Ask for one of: {shown}." if names else "Start a worker, or wait until one is loaded.",
        )

    def _headers(self, worker: Worker, request_id: str) -> dict[str, str]:
        headers = {REQUEST_ID_HEADER: request_id}
        if worker.knows_token:
            headers["Authorization"] = f"Bearer {self.options.token}"
        return headers

    async def _look_after(self, worker: Worker) -> None:
        """Drop a worker that no longer answers; one that does has only lost a request."""
        try:
            status = await self._status(worker.address, has_token=worker.knows_token)
        except RegistrationError as error:
            self._drop(worker.address, error.cause)
        else:
            self.registry.update(worker.address, status)

    async def _ask_everyone(self) -> None:
        await asyncio.gather(*(self._look_after(worker) for worker in self.registry.workers))

    async def _status(self, address: str, *, has_token: bool) -> WorkerStatus:
        """Return what a worker says of itself; raises RegistrationError."""
        client = AsyncServingClient(
            address,
            token=self.options.token if has_token else None,
            options=ClientOptions(timeout_s=self.options.timeout_s),
            transport=_Unclosed.of(self._transport),
        )
        try:
            return await client.status()
        except (RemoteError, ReportedError, RequestError, TooLargeError) as error:
            _logger.warning("worker %s: %s", address, error)
            raise RegistrationError(
                "The worker does not answer at the address it gives",
                remedy="Give --worker-address an address that the controller reaches.",
            ) from None
        finally:
            await client.close()

    def _drop(self, address: str, reason: str) -> None:
        if self.registry.remove(address, reason):
            _logger.warning("worker %s removed: %s", address, reason)


class _Unclosed:
    """Lends a transport to a client that would close it."""

    @classmethod
    def of(cls, transport: httpx.AsyncBaseTransport | None) -> Any:
        """Return None for None: the client then has the network."""
        if transport is None:
            return None
        import httpx

        lent = transport

        class Lent(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                return await lent.handle_async_request(request)

        return Lent()
