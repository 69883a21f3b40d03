"""What runs on the machines of a Ray cluster: one model in each replica, and who is given which request.

RayEngine (ray_engine.py, the process with the API) -> ConversationRouter -> Replica -> an engine of ours
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from llava.engine.model_options import ModelOptions, load_engine
from llava.errors import LlavaError
from llava.serve.request_queue import QueueOptions, RequestQueue

if TYPE_CHECKING:
    from llava.engine.request import Answer, Request


class Description(NamedTuple):
    """What the process with the API should know of the model."""

    engine: str
    template: str
    notices: tuple[str, ...]
    has_formats: bool


class Replica:
    """A model that answers requests of other machines."""

    def __init__(self, options: ModelOptions, queue: QueueOptions) -> None:
        """Load the model; raises what loading raises."""
        self._queue = RequestQueue(load_engine(options), queue)

    def describe(self) -> Description:
        """Return what answers."""
        engine = self._queue.engine
        return Description(engine.name, engine.template.name, tuple(engine.notices), engine.has_formats)

    async def answer(self, request: Request, affinity: str) -> AsyncIterator[str | Answer | LlavaError]:
        """Yield pieces of text, and in the end the answer, or the error that ended it.

        affinity: the request's conversation, for the router. An error is an item and is not raised, since Ray
        would wrap it into one of its own.
        """
        _ = affinity
        try:
            async with self._queue.events(lambda: request) as events:
                async for event in events:
                    if event.piece is not None:
                        yield event.piece
                    elif event.answer is not None:
                        yield event.answer
        except LlavaError as error:
            yield error

    def __del__(self) -> None:
        """End the engine; Ray calls this once the replica's requests are done."""
        if hasattr(self, "_queue"):  # not when loading failed
            self._queue.close()
            self._queue.engine.close()


class ConversationRouter(RequestRouter):  # type: ignore[misc]
    """Sends the requests of one conversation to one replica, while that has places, and else to any other.

    Rendezvous hashing: every router of the cluster chooses alike without a word to the others, and a replica
    that comes or goes moves its own conversations only.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return groups of replicas, in the order in which they are asked for a free place."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        affinity = pending_request.args[-1] if pending_request.args else ""
        home = max(candidate_replicas, key=lambda replica: weight(affinity, replica.replica_id.unique_id))
        others = [replica for replica in candidate_replicas if replica is not home]
        return [[home], others] if others else [[home]]


def weight(affinity: str, replica: str) -> bytes:
    """Return how much a replica wants a conversation; the highest weight has it."""
    return hashlib.sha256(f"{affinity}\0{replica}".encode("utf-8", "surrogatepass")).digest()
