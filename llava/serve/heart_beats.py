"""A worker's side of staying known: register, send heartbeats, register again when forgotten, say goodbye.

Intervals and rules are the original's (llava/serve/model_worker.py there): every 15 s, and whenever a request
begins or ends; after a failure again in 5 s. Nothing here holds up a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.errors import ConfigError, LlavaError, RemoteError, ReportedError, RequestError, TooLargeError
from llava.log import get_logger
from llava.serve.client import AsyncServingClient
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.protocol import Registration, WorkerStatus

_logger = get_logger(__name__)

_FAILURES = (RemoteError, ReportedError, RequestError, TooLargeError)
_GLANCE_S = 0.1
"""How often it is looked whether the server is still ready."""


@dataclass(frozen=True, slots=True)
class HeartBeatOptions:
    """When the controller hears of a worker, in seconds."""

    interval_s: float = WORKER_HEART_BEAT_INTERVAL
    retry_s: float = 5.0
    """After a failure."""
    least_s: float = 0.2
    """Between two heartbeats, however many requests come and go."""

    def __post_init__(self) -> None:
        for name in ("interval_s", "retry_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", remedy="It must be above 0.")


class HeartBeats:
    """Keeps one worker known to one controller."""

    def __init__(
        self,
        client: AsyncServingClient,
        address: str,
        status: Callable[[], WorkerStatus],
        lifecycle: Lifecycle,
        options: HeartBeatOptions | None = None,
    ) -> None:
        """`client` leads to the controller, `address` to the worker."""
        self._client = client
        self._address = address
        self._status = status
        self._lifecycle = lifecycle
        self._options = options or HeartBeatOptions()
        self._has_changed = False
        self._trouble = ""
        self.has_begun = False
        """Whether there is something to say goodbye to."""

    def nudge(self) -> None:
        """Let the controller know soon that the queue has changed."""
        self._has_changed = True

    async def run(self) -> None:
        """Begin when the server is ready, and say goodbye when it stops."""
        while self._lifecycle.state == "loading":
            await asyncio.sleep(_GLANCE_S)
        is_known, self.has_begun = False, True
        while self._lifecycle.state == "ready":
            is_known = await self._attempt(is_known)
            await self._pause(self._options.interval_s if is_known else self._options.retry_s)
        if is_known:
            try:
                await self._client.unregister(self._address)
            except _FAILURES as error:
                # The original's controllers do not know the route, and drop the worker by its silence.
                _logger.info("not unregistered: %s", error)

    async def _attempt(self, is_known: bool) -> bool:
        """Send what is due; returns whether the controller knows the worker now."""
        self._has_changed = False
        try:
            status = self._status()
            if is_known and await self._client.heart_beat(self._address, status.queue_length):
                self._note("")
                return True
            if is_known:
                _logger.info("the controller has forgotten this worker")
            await self._client.register(Registration(self._address, True, status))
        except _FAILURES as error:
            self._note(_line(error))
            # A controller that cannot be reached may know the worker still: a heartbeat tells.
            return is_known and isinstance(error, RemoteError)
        _logger.info("registered at %s as %s", self._client.address, self._address)
        self._trouble = ""
        return True

    def _note(self, trouble: str) -> None:
        """Log a trouble when it begins, and its end; not every attempt."""
        if trouble and trouble != self._trouble:
            _logger.warning("%s; trying again every %g s", trouble, self._options.retry_s)
        elif self._trouble and not trouble:
            _logger.info("the controller answers again")
        self._trouble = trouble

    async def _pause(self, seconds: float) -> None:
        if self._trouble:
            seconds = min(seconds, self._options.retry_s)
        begin = monotonic()
        while self._lifecycle.state == "ready" and (waited := monotonic() - begin) < seconds:
            if self._has_changed and not self._trouble and waited >= self._options.least_s:
                return
            await asyncio.sleep(min(_GLANCE_S, seconds - waited))


def _line(error: LlavaError) -> str:
    return f"{error.code}: {error}"
