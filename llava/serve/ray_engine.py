"""An engine whose answers are computed by replicas of a model on a Ray cluster (Ray Serve).

Server and API stay what they are, in one process; only the engine is elsewhere. So every limit, key and
error of `llava serve` holds, and Ray needs no HTTP server of its own. A replica that is lost costs the
answers it was working on, each of which ends with the code `worker-lost`; other requests wait for a place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from llava.command import note
from llava.engine.counting import Counter
from llava.engine.loop_thread import LoopThread
from llava.engine.protocol import DEFAULT_CONCURRENCY, Engine, OnAnswer, Statistics
from llava.engine.pushed_stream import Counts, PushedStream
from llava.engine.request import Answer, Request
from llava.engine.windowed import answer_all
from llava.errors import DependencyError, EngineError, InternalError, LlavaError, RemoteError, WorkerLostError
from llava.log import get_logger
from llava.serve.request_queue import QueueOptions
from llava.templates import ChatTemplate, Turn, get_template

if TYPE_CHECKING:
    from llava.engine.model_options import ModelOptions
    from llava.serve.ray_options import RayOptions

_logger = get_logger(__name__)

_APP_PREFIX = "llava-"
_DEPLOYMENT = "model"
_LOADING_TIMEOUT_S = 3600.0
_HEALTH_CHECK_S = 5.0


class RayEngine(Engine):
    """Answers requests by the replicas of one application of Ray Serve."""

    def __init__(self, app: str, *, is_owner: bool) -> None:
        """Ask an application that runs. is_owner: whether `close` ends it."""
        from ray import serve

        self._app = app
        self._is_owner = is_owner
        handle = serve.get_app_handle(app)
        self._description = handle.describe.remote().result(timeout_s=_LOADING_TIMEOUT_S)
        self._answer = handle.options(method_name="answer", stream=True)
        self.notices = self._description.notices
        self.has_formats = self._description.has_formats
        self._template = get_template(self._description.template)
        self._counter = Counter()
        self._loop = LoopThread("llava-ray-engine")
        self._is_closed = False

    @property
    def name(self) -> str:
        """What answers in each replica."""
        return f"replicas of {self._description.engine}"

    @property
    def template(self) -> ChatTemplate:
        """The replicas' template."""
        return self._template

    def submit(self, request: Request) -> PushedStream:
        """Send a request on; what is wrong with it is raised to the reader."""
        if self._is_closed:
            raise EngineError("the engine was closed", remedy="Load it again.")
        stream = PushedStream(num_logprobs=request.sampling.logprobs, start=perf_counter())
        self._counter.add(num_running=1, num_images=len(request.images))
        stream.when_ended(self._count_end)
        future = self._loop.start(self._read(request, stream))
        future.add_done_callback(lambda done: _settle(done, stream))
        stream.when_ended(lambda ended: _stop_asking(ended, future))
        return stream

    def generate(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = DEFAULT_CONCURRENCY,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer]:
        """Answer many requests, at most `batch_size` of them at a time, and return the answers in order."""
        return answer_all(self.submit, requests, batch_size=batch_size, on_answer=on_answer)

    def statistics(self) -> Statistics:
        """Return what went through this process."""
        return self._counter.now

    def close(self) -> None:
        """End what runs, and the application if it is this process's own."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.close()
        if self._is_owner:
            from ray import serve

            serve.delete(self._app)

    async def _read(self, request: Request, stream: PushedStream) -> None:
        """Carry one request from beginning to end; what it raises ends the stream (`_settle`)."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        items = self._answer.remote(request, affinity_of(request))
        try:
            async for item in items:
                if isinstance(item, LlavaError):
                    raise item
                if isinstance(item, str):
                    stream.push(item)
                else:
                    _finish(stream, item)
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
        finally:
            if not stream.has_ended or stream.error is None:
                items.cancel()  # without effect on what has ended
        if not stream.has_ended:
            raise WorkerLostError("A replica broke off in the middle of the answer", remedy="Ask again.")

    def _count_end(self, stream: PushedStream) -> None:
        if stream.error is not None:
            self._counter.add(num_running=-1, num_failed=1)
            return
        answer = stream.answer
        is_cancelled = answer.finish_reason == "cancelled"
        self._counter.add(
            num_running=-1,
            num_cancelled=int(is_cancelled),
            num_finished=int(not is_cancelled),
            num_prompt_tokens=answer.num_prompt_tokens,
            num_cached_tokens=answer.num_cached_tokens,
            num_new_tokens=answer.num_new_tokens,
        )


def join_cluster(options: RayOptions) -> None:
    """Connect this process to the cluster, or start one on this machine; raises RemoteError, DependencyError.

    Call it from the main thread, before signal handlers are set. Nothing is reported to Ray's makers, and
    neither its dashboard nor its HTTP server is started. Ray's ports listen on every interface, so that those
    of a cluster that is started here want a token, drawn for its lifetime.
    """
    # Read by Ray when it is imported.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray would warn about otherwise
    start: dict[str, Any] = {"address": options.address}
    if options.address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        start = {"address": "local", "include_dashboard": False}
    try:
        import ray
        from ray import serve
    except ImportError:
        raise DependencyError.of_extra("ray", "ray", "llava serve --ray") from None
    try:
        ray.init(**start, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise RemoteError(
            f"the Ray cluster {options.address or 'of this machine'} cannot be used: {_first_line(error)}",
            remedy="Check --ray-address, and that both sides have the same releases of Python and Ray.",
        ) from error


def leave_cluster() -> None:
    """Disconnect; a cluster that was started by `join_cluster` ends."""
    import ray

    ray.shutdown()


def deploy(name: str, model: ModelOptions, options: RayOptions) -> RayEngine:
    """Run replicas of a model, and return an engine that asks them; raises RemoteError when they cannot load.

    An application of this name that runs already is joined as it is, so that several processes with the API
    can share one, and a new one takes over from one that was lost.
    """
    from ray import serve

    if model.path is not None and os.path.exists(model.path):
        model = replace(model, path=os.path.abspath(model.path))  # replicas have another working directory
    app = _APP_PREFIX + name
    found = serve.status().applications.get(app)
    if found is not None and found.status == "RUNNING":
        note(f"{name} runs on the cluster already: its replicas answer, as they are")
        return RayEngine(app, is_owner=False)
    try:
        serve.run(_application(model, options), name=app, route_prefix=None)
    except RuntimeError as error:
        status = serve.status().applications.get(app)
        deployments = status.deployments.values() if status is not None else ()
        reason = " ".join(deployment.message for deployment in deployments) or str(error)
        serve.delete(app)
        raise RemoteError(
            f"no replica of {name} can be started: {_last_line(reason)}",
            remedy="The model must be at the same place on every machine; see Ray's logs for the rest.",
        ) from error
    return RayEngine(app, is_owner=True)


def _application(model: ModelOptions, options: RayOptions) -> Any:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from llava.serve.ray_replica import ConversationRouter, Replica

    deployment = serve.deployment(
        Replica,
        name=_DEPLOYMENT,
        max_ongoing_requests=options.max_running,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.target_ongoing,
        ),
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        request_router_config=RequestRouterConfig(request_router_class=ConversationRouter),
        health_check_period_s=_HEALTH_CHECK_S,
    )
    return deployment.bind(model, QueueOptions(max_running=options.max_running))


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


def _settle(done: Future[None], stream: PushedStream) -> None:
    """End the stream of a request whose coroutine has ended, if it has not ended itself."""
    if done.cancelled():
        stream.fail(EngineError("the engine was closed before the answer was finished"))
    elif (error := done.exception()) is not None:
        stream.fail(error)


def _stop_asking(stream: PushedStream, future: Future[None]) -> None:
    """Tell the replica that the reader of a stream has left."""
    if stream.error is None and stream.answer.finish_reason == "cancelled":
        future.cancel()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.strip().splitlines()) if line.strip()), "")
