"""Which workers there are, how busy they are, and which of them gets the next request. No network in here.

Source of the rules: the original's `llava/serve/controller.py`: lottery weighted by speed, shortest queue by
queue length over speed with a local increment, workers dropped 30 s after their last heartbeat. Beyond it, a
conversation stays with the worker that holds its cache, unless that one is much busier than another.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, NamedTuple, get_args

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.errors import ConfigError
from llava.serve.protocol import WorkerStatus

DispatchMethod = Literal["lottery", "shortest_queue"]
DISPATCH_METHODS: tuple[DispatchMethod, ...] = get_args(DispatchMethod)


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How workers are chosen and given up."""

    dispatch: DispatchMethod = "shortest_queue"
    expiry_s: float = CONTROLLER_HEART_BEAT_EXPIRATION
    """A worker that was to send heartbeats is dropped so long after its last one."""
    affinity_slack: float = 4.0
    """A conversation leaves its worker when that has so many requests more than the least busy one."""
    max_conversations: int = 100_000
    """Conversations whose worker is remembered; the one that was silent longest is forgotten first."""
    max_removals: int = 100
    """Removals whose reason is remembered."""

    def __post_init__(self) -> None:
        if self.dispatch not in DISPATCH_METHODS:
            raise ConfigError.of_field("dispatch", self.dispatch, DISPATCH_METHODS)
        if not self.expiry_s > 0:
            raise ConfigError(f"expiry_s is {self.expiry_s!r}", remedy="It must be above 0.")


@dataclass(slots=True)
class Worker:
    """A registered worker."""

    address: str
    status: WorkerStatus
    check_heart_beat: bool
    last_heart_beat: float
    """By the registry's clock."""
    knows_token: bool = True
    """Whether it may be sent the shared token; false for workers that were allowed by their address."""

    @property
    def load(self) -> float:
        """Requests in its queue over its speed."""
        return self.status.queue_length / self.status.speed


class Removal(NamedTuple):
    """Why a worker is no longer there."""

    address: str
    model_names: tuple[str, ...]
    reason: str
    at: float
    """By the registry's clock."""


@dataclass
class Registry:
    """The workers of one controller; to be used from one thread."""

    options: RegistryOptions = field(default_factory=RegistryOptions)
    clock: Callable[[], float] = monotonic
    draw: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._removals: deque[Removal] = deque(maxlen=self.options.max_removals)
        self._homes: OrderedDict[str, str] = OrderedDict()  # conversation -> address

    @property
    def workers(self) -> list[Worker]:
        """The workers, in the order of their first registration."""
        return list(self._workers.values())

    @property
    def removals(self) -> list[Removal]:
        """What was removed, the latest last."""
        return list(self._removals)

    def find(self, address: str) -> Worker | None:
        """Return the worker at an address."""
        return self._workers.get(address)

    def register(
        self, address: str, status: WorkerStatus, *, check_heart_beat: bool, knows_token: bool = True
    ) -> None:
        """Add a worker, or take what it says now in place of what it said before."""
        self._workers[address] = Worker(address, status, check_heart_beat, self.clock(), knows_token)

    def update(self, address: str, status: WorkerStatus) -> None:
        """Take a status that was asked for; a worker that is not known stays unknown."""
        if (worker := self._workers.get(address)) is not None:
            worker.status = status

    def heart_beat(self, address: str, queue_length: int) -> bool:
        """Note a sign of life; returns whether the worker is known."""
        worker = self._workers.get(address)
        if worker is None:
            return False
        self._set_queue_length(worker, queue_length)
        worker.last_heart_beat = self.clock()
        return True

    def remove(self, address: str, reason: str) -> bool:
        """Take a worker out and remember why; returns whether it was there."""
        worker = self._workers.pop(address, None)
        if worker is None:
            return False
        self._removals.append(Removal(address, worker.status.model_names, reason, self.clock()))
        return True

    def remove_expired(self) -> list[Removal]:
        """Take out the workers whose heartbeat is overdue, and return them with the reason."""
        now, removed = self.clock(), []
        for worker in self.workers:
            silent_s = now - worker.last_heart_beat
            if worker.check_heart_beat and silent_s > self.options.expiry_s:
                self.remove(worker.address, f"no heartbeat for {silent_s:.0f} s")
                removed.append(self._removals[-1])
        return removed

    def models(self) -> list[str]:
        """Return the names of all models, each once, sorted."""
        return sorted({name for worker in self._workers.values() for name in worker.status.model_names})

    def templates(self) -> dict[str, str]:
        """Return the prompt template of each model whose workers say it."""
        return {
            name: template
            for worker in self._workers.values()
            for name, template in worker.status.templates.items()
        }

    def status(self) -> WorkerStatus:
        """Return all workers as one, for a controller above."""
        workers = self.workers
        return WorkerStatus(
            model_names=tuple(self.models()),
            speed=sum(worker.status.speed for worker in workers),
            queue_length=sum(worker.status.queue_length for worker in workers),
            templates=self.templates(),
        )

    def choose(self, model: str, *, affinity: str = "", excluded: Collection[str] = ()) -> Worker | None:
        """Return the worker for a request, which counts as sent there; None when no worker has the model.

        affinity: the request's conversation, see `protocol.affinity_of`; "" for none.
        excluded: addresses that were tried already.
        """
        able = [
            worker
            for worker in self._workers.values()
            if model in worker.status.model_names and worker.address not in excluded
        ]
        if not able:
            return None
        chosen = self._home(affinity, able) or self._dispatch(able)
        self._set_queue_length(chosen, chosen.status.queue_length + 1)
        if affinity:
            self._homes[affinity] = chosen.address
            self._homes.move_to_end(affinity)
            if len(self._homes) > self.options.max_conversations:
                self._homes.popitem(last=False)
        return chosen

    def _home(self, affinity: str, able: list[Worker]) -> Worker | None:
        """Return the worker that holds a conversation, unless it is much busier than the least busy one."""
        address = self._homes.get(affinity)
        home = next((worker for worker in able if worker.address == address), None)
        if home is None or home.load > min(worker.load for worker in able) + self.options.affinity_slack:
            return None
        return home

    def _dispatch(self, able: list[Worker]) -> Worker:
        if self.options.dispatch == "lottery":
            return self.draw.choices(able, weights=[worker.status.speed for worker in able])[0]
        return min(able, key=lambda worker: worker.load)

    def _set_queue_length(self, worker: Worker, queue_length: int) -> None:
        status = worker.status
        worker.status = WorkerStatus(
            status.model_names, status.speed, queue_length, status.templates, status.instance
        )
