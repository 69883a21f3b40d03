"""A Ray cluster for `llava serve --ray`: connecting to one, and starting the replicas of a model on it.

Ray's names are not used as types here: the extra `ray` may be missing, and its packages are imported late.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.command import note
from llava.errors import DependencyError, RemoteError
from llava.serve.ray_engine import RayEngine, first_line
from llava.serve.request_queue import QueueOptions

if TYPE_CHECKING:
    from llava.engine.model_options import ModelOptions
    from llava.serve.ray_options import RayOptions

_APP_PREFIX = "llava-"
_DEPLOYMENT = "model"
_HEALTH_CHECK_S = 5.0
_SHUTDOWN_POLL_S = 0.5
_STATUS_POLL_S = 0.5
_CHANGE_TIMEOUT_S = 600.0
"""How long another process may take to start or end an application until it counts as lost."""
_IN_CHANGE = ("NOT_STARTED", "DEPLOYING", "DELETING")
_IN_USE = ("RUNNING", "UNHEALTHY")


def join_cluster(options: RayOptions) -> None:
    """Connect this process to the cluster, or start one on this machine; raises RemoteError, DependencyError.

    Call it from the main thread, before signal handlers are set. Nothing is reported to Ray's makers, and
    neither its dashboard nor its HTTP server is started. Ray's ports listen on every interface, so that those
    of a cluster that is started here want a token, drawn for its lifetime.
    """
    # Read by Ray when it is imported.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    start: dict[str, Any] = {"address": options.address}
    if options.address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        start = {"address": "local", "include_dashboard": False}
    try:
        import ray
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException
    except ImportError:
        raise DependencyError.of_extra("ray", "ray", "llava serve --ray") from None
    try:
        ray.init(**start, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    except (OSError, RuntimeError, ValueError, RayError, RayServeException) as error:
        raise RemoteError(
            f"the Ray cluster {options.address or 'of this machine'} cannot be used: {first_line(error)}",
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
    is_there = _settled_status(app) in _IN_USE
    if not is_there:
        _start(name, model, options)
    engine = RayEngine(serve.get_app_handle(app), on_close=None if is_there else lambda: _delete(app))
    if is_there:
        note(f"{name} runs on the cluster already: its replicas answer, as they are")
        if differing := differences(engine.description.model, model):
            note(f"warning: {name} differs there: {differing}")
    for notice in engine.notices:
        note(f"note: {notice}")
    return engine


def differences(there: ModelOptions, here: ModelOptions) -> str:
    """Return which options of two models differ, and how; "" for none."""
    return ", ".join(
        f"{field.name} is {getattr(there, field.name)!r} and not {getattr(here, field.name)!r}"
        for field in fields(here)
        if getattr(there, field.name) != getattr(here, field.name)
    )


def _settled_status(app: str) -> str | None:
    """Return the status of an application, once nobody is about to start or end it; None for none."""
    deadline: float | None = None
    while (status := _status(app)) in _IN_CHANGE:
        if deadline is None:
            note(f"waiting for {app}, which another process starts or ends")
            deadline = time.monotonic() + _CHANGE_TIMEOUT_S
        elif time.monotonic() > deadline:
            note(f"warning: {app} takes too long, and is started anew")
            break
        time.sleep(_STATUS_POLL_S)
    return status


def _status(app: str) -> str | None:
    from ray import serve

    found = serve.status().applications.get(app)
    return None if found is None else str(found.status.value)


def _start(name: str, model: ModelOptions, options: RayOptions) -> None:
    """Start the replicas and wait until the fewest that are wanted have loaded; raises RemoteError."""
    import ray
    from ray import serve
    from ray.exceptions import RayError

    app = _APP_PREFIX + name
    num_gpus = num_gpus_of(model, options, cluster_gpus=ray.cluster_resources().get("GPU", 0.0))
    if missing := shortage(options, num_gpus, ray.available_resources()):
        note(f"note: {name} needs {missing}: replicas wait until there are more")
    try:
        serve.run(application(model, options, num_gpus), name=app, route_prefix=None)
    except (RuntimeError, RayError) as error:
        status = serve.status().applications.get(app)
        deployments = status.deployments.values() if status is not None else ()
        reason = " ".join(deployment.message for deployment in deployments) or str(error)
        _delete(app)
        raise RemoteError(
            f"no replica of {name} can be started: {_last_line(reason)}",
            remedy="The model must be at the same place on every machine; see Ray's logs for the rest.",
        ) from error


def _delete(app: str) -> None:
    """End an application; where that cannot be waited for, say so."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        serve.delete(app)
    except TimeoutError:
        note(f"{app} still answers other processes, and ends when they are done")
    except (RayError, RayServeException) as error:
        note(f"warning: {app} could not be ended: {first_line(error)}")


def application(model: ModelOptions, options: RayOptions, num_gpus: float) -> Any:
    """Return what `serve.run` takes: the replicas of a model, each with `num_gpus` GPUs."""
    from ray import serve

    from llava.serve.ray_replica import Replica

    if num_gpus > 1 and model.device in (None, "auto", "cuda"):
        model = replace(model, device_map="auto")
    return serve.deployment(Replica, **deployment_options(options, num_gpus)).bind(
        model, QueueOptions(max_running=options.max_running), has_gpu=num_gpus > 0
    )


def deployment_options(options: RayOptions, num_gpus: float) -> dict[str, Any]:
    """Return the arguments of `serve.deployment`."""
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from llava.serve.ray_replica import ConversationRouter

    return {
        "name": _DEPLOYMENT,
        "max_ongoing_requests": options.max_running,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.target_ongoing,
        ),
        "ray_actor_options": {"num_cpus": options.num_cpus, "num_gpus": num_gpus},
        "request_router_config": RequestRouterConfig(request_router_class=ConversationRouter),
        "health_check_period_s": _HEALTH_CHECK_S,
        # A replica that is not needed any more ends its answers first; Ray's 20 s would cut long ones off.
        "graceful_shutdown_timeout_s": QueueOptions().answer_timeout_s,
        "graceful_shutdown_wait_loop_s": _SHUTDOWN_POLL_S,
    }


def num_gpus_of(model: ModelOptions, options: RayOptions, *, cluster_gpus: float) -> float:
    """Return how many GPUs a replica needs: where nothing was said, one if the cluster has any to use."""
    from llava.engine.gguf_facts import is_gguf

    if options.num_gpus is not None:
        return options.num_gpus
    is_on_cpu = model.is_endpoint or model.engine not in ("auto", "torch")
    is_on_cpu = is_on_cpu or (model.path is not None and is_gguf(Path(model.path)))
    return 0.0 if is_on_cpu or cluster_gpus < 1 else 1.0


def shortage(options: RayOptions, num_gpus: float, free: dict[str, float]) -> str:
    """Return what the fewest replicas need and a cluster does not have free; "" for nothing."""
    wanted = {"CPU": options.num_cpus, "GPU": num_gpus}
    return " and ".join(
        f"{each * options.min_replicas:g} {kind}s, of which {free.get(kind, 0.0):g} are free"
        for kind, each in wanted.items()
        if each * options.min_replicas > free.get(kind, 0.0)
    )


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.strip().splitlines()) if line.strip()), "").rstrip(
        "."
    )
