"""What runs on the machines of a Ray cluster: one model in each replica, and who is given which request.

RayEngine (ray_engine.py, the process with the API) -> ConversationRouter -> Replica -> an engine of ours
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from llava import __version__
from llava.engine.model_options import ModelOptions, load_engine
from llava.errors import InternalError, LlavaError
from llava.serve.request_queue import QueueOptions, RequestQueue

if TYPE_CHECKING:
    from llava.engine.request import Answer, Request


_MAX_BROKEN = 3
"""Answers that broke off one after the other, from which on a replica counts as broken itself."""


class Description(NamedTuple):
    """What the process with the API should know of the model."""

    engine: str
    template: str
    notices: tuple[str, ...]
    has_formats: bool
    model: ModelOptions
    version: str = __version__


class Replica:
    """A model that answers requests of other machines."""

    def __init__(self, options: ModelOptions, queue: QueueOptions, *, has_gpu: bool) -> None:
        """Load the model; raises what loading raises.

        has_gpu: Ray set one aside, and shows no other, so that it is cuda:0 here. Ray shows all GPUs of the
        machine to a replica for which it set none aside.
        """
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._options = options
        self._queue = RequestQueue(load_engine(options), queue)
        self._num_broken = 0

    def describe(self) -> Description:
        """Return what answers."""
        engine = self._queue.engine
        return Description(
            engine.name, engine.template.name, tuple(engine.notices), engine.has_formats, self._options
        )

    def check_health(self) -> None:
        """Raise InternalError when answers only break off any more, as after a fault of the GPU.

        Ray calls it every few seconds, and starts a replica anew for which it raised three times.
        """
        if self._num_broken >= _MAX_BROKEN:
            raise InternalError(
                f"the last {self._num_broken} answers broke off", remedy="See the log of the replica."
            )

    async def answer(self, request: Request, affinity: str) -> AsyncIterator[str | Answer | LlavaError]:
        """Yield pieces of text, and in the end the answer, or the error that ended it.

        affinity: the request's conversation, for the router. An error is an item and is not raised, since Ray
        would wrap it into one of its own.
        """
        _ = affinity
        is_broken = True
        try:
            async with self._queue.events(lambda: request) as events:
                async for event in events:
                    if event.piece is not None:
                        yield event.piece
                    elif event.answer is not None:
                        is_broken = False
                        self._num_broken = 0
                        yield event.answer
        except LlavaError as error:
            is_broken = False
            yield error
        except (asyncio.CancelledError, GeneratorExit):
            is_broken = False  # the reader has left
            raise
        finally:
            self._num_broken += is_broken

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
        # Where no replica has a place, Ray waits before it asks again only if it is told to.
        pending_request.routing_context.should_backoff = True
        affinity = pending_request.args[-1] if pending_request.args else ""
        home = max(candidate_replicas, key=lambda replica: weight(affinity, replica.replica_id.unique_id))
        others = [replica for replica in candidate_replicas if replica is not home]
        return [[home], others] if others else [[home]]


def weight(affinity: str, replica: str) -> bytes:
    """Return how much a replica wants a conversation; the highest weight has it."""
    return hashlib.sha256(f"{affinity}\0{replica}".encode("utf-8", "surrogatepass")).digest()
