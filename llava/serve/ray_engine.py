"""An engine whose answers are computed by replicas of a model on a Ray cluster (Ray Serve).

Server and API stay what they are, in one process; only the engine is elsewhere. So every limit, key and
error of `llava serve` holds, and Ray needs no HTTP server of its own. A replica that is lost costs the
answers it was working on, each of which ends with the code `worker-lost`; other requests wait for a place.

ray_cluster.py starts the replicas and makes this engine with their handle; ray_replica.py is what they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from llava import __version__
from llava.engine.client_engine import ClientEngine
from llava.engine.pushed_stream import Counts, PushedStream
from llava.engine.request import Answer, Request
from llava.errors import InternalError, LlavaError, RemoteError, WorkerLostError
from llava.log import get_logger
from llava.templates import ChatTemplate, Turn, get_template

if TYPE_CHECKING:
    from llava.serve.ray_replica import Description

_logger = get_logger(__name__)

_LOADING_TIMEOUT_S = 3600.0


class Items(Protocol):
    """What a replica sends back for one request: pieces of text, and in the end the answer or an error."""

    def __aiter__(self) -> AsyncIterator[str | Answer | LlavaError]:
        """Go over the items; raises Ray's errors when the replica fails or is lost."""
        ...

    def cancel(self) -> None:
        """Tell the replica that nobody reads any more."""
        ...


class AnswerMethod(Protocol):
    """`Replica.answer` of some replica, from outside."""

    def remote(self, request: Request, affinity: str) -> Items:
        """Send a request to the replica that the router chooses; returns at once."""
        ...


class Described(Protocol):
    """A Description on its way."""

    def result(self, *, timeout_s: float | None) -> Description:
        """Wait for it; raises Ray's errors and TimeoutError."""
        ...


class DescribeMethod(Protocol):
    """`Replica.describe` of some replica, from outside."""

    def remote(self) -> Described:
        """Ask; returns at once."""
        ...


class Handle(Protocol):
    """What this engine needs of Ray Serve's DeploymentHandle."""

    @property
    def describe(self) -> DescribeMethod:
        """The method of that name."""
        ...

    def options(self, *, method_name: str, stream: bool) -> AnswerMethod:
        """Return another method; stream: it gives items one by one."""
        ...


class RayEngine(ClientEngine):
    """Answers requests by the replicas of one application of Ray Serve."""

    def __init__(self, handle: Handle, *, on_close: Callable[[], None] | None = None) -> None:
        """Ask the replicas behind a handle. on_close: ends what `close` should end besides.

        Waits until a replica has loaded the model. Raises RemoteError when none says what it is, or when
        they run another release of this package, whose requests and answers may have other fields.
        """
        self._on_close = on_close
        self.description = _described(handle)
        super().__init__("llava-ray-engine")
        self._answer = handle.options(method_name="answer", stream=True)
        self.notices = self.description.notices
        self.has_formats = self.description.has_formats
        self._template = get_template(self.description.template)

    @property
    def name(self) -> str:
        """What answers in each replica."""
        return f"replicas of {self.description.engine}"

    @property
    def template(self) -> ChatTemplate:
        """The replicas' template."""
        return self._template

    def submit(self, request: Request) -> PushedStream:
        """Send a request on; what is wrong with it is raised to the reader."""
        self._refuse_if_closed()
        stream = PushedStream(num_logprobs=request.sampling.logprobs, start=perf_counter())
        affinity = affinity_of(request)  # here, since hashing a large picture would hold up the loop
        self._counter.add(num_running=1, num_images=len(request.images))
        stream.when_ended(lambda _: self._counter.add(num_running=-1))
        self._carry(stream, self._read(request, affinity, stream))
        return stream

    def close(self) -> None:
        """End what runs, and the application if it is this process's own."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.close()
        if self._on_close is not None:
            self._on_close()

    async def _read(self, request: Request, affinity: str, stream: PushedStream) -> None:
        """Carry one request from beginning to end; what it raises ends the stream."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        items = self._answer.remote(request, affinity)
        try:
            async for item in items:
                if isinstance(item, LlavaError):
                    raise item
                if isinstance(item, str):
                    stream.push(item)
                else:
                    _finish(stream, item)
        except asyncio.CancelledError:
            with contextlib.suppress(RayError, RayServeException):  # what has failed need not be cancelled
                items.cancel()
            if stream.has_ended or self._is_closed:
                raise
            # Nobody here cancelled it: Ray made the replica stop.
            raise WorkerLostError(
                "The replica was stopped", remedy="Ask again; another one answers."
            ) from None
        except RayTaskError as error:
            _logger.error("a replica failed: %s", error)
            raise InternalError(
                "The server failed while it worked on the request", remedy="See the log of the server."
            ) from error
        except (RayError, RayServeException) as error:
            _logger.warning("a replica was lost: %s", type(error).__name__)
            raise WorkerLostError(
                "The replica that worked on the answer was lost", remedy="Ask again; another one takes over."
            ) from None
        if not stream.has_ended:
            raise WorkerLostError("A replica broke off in the middle of the answer", remedy="Ask again.")


def _described(handle: Handle) -> Description:
    """Ask a replica what it is; raises RemoteError."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    same = f"All machines and processes need the same release of this package; here it is {__version__}."
    try:
        found = handle.describe.remote().result(timeout_s=_LOADING_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError) as error:
        raise RemoteError(f"no replica says what it is: {first_line(error)}", remedy=same) from error
    if found.version != __version__:
        raise RemoteError(f"the replicas run release {found.version}", remedy=same)
    return found


def affinity_of(request: Request) -> str:
    """Return a key that all requests of one conversation share: its first picture, or its first words."""
    from PIL import Image

    digest = hashlib.sha256()
    first = request.images[0] if request.images else None
    if isinstance(first, Image.Image):
        digest.update(repr((first.size, first.mode)).encode())
        digest.update(first.tobytes())
    elif first is not None:
        digest.update(repr(first).encode())
    else:
        words = request.prompt if request.prompt is not None else _words(request.turns[0])
        digest.update(words.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _words(turn: Turn) -> str:
    return "".join(part for part in turn.content if isinstance(part, str))


def _finish(stream: PushedStream, answer: Answer) -> None:
    """End a stream as the replica's answer ended."""
    stream.count(Counts(answer.num_prompt_tokens, answer.num_new_tokens, answer.num_cached_tokens))
    stream.count_image(answer.timing.image_s)
    stream.push("", num_tokens=0, logprobs=answer.logprobs or ())
    stream.finish(answer.finish_reason)


def first_line(error: Exception) -> str:
    """Return what an error of Ray's says before its tracebacks."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
