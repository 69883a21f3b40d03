"""Joining a cluster and starting replicas on it, over a Ray that only notes what it is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from llava.engine.model_options import ModelOptions
from llava.errors import DependencyError, RemoteError
from llava.serve import ray_cluster
from llava.serve.ray_cluster import deploy, differences, join_cluster
from llava.serve.ray_options import RayOptions
from tests.serve.ray_fakes import FakeHandle

# Ray Serve uses what pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

APP = "llava-dogs"
SETTINGS = (
    "RAY_USAGE_STATS_ENABLED",
    "RAY_SERVE_LOG_TO_STDERR",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test sets is undone."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)


class FakeCluster:
    """The functions of ray and ray.serve that are used; `statuses` is what is said of an application."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray
        from ray import serve

        self.statuses: list[str | None] = [None]
        self.handle = FakeHandle()
        self.resources = {"CPU": 4.0}
        self.on_run: Callable[[], None] = lambda: None
        self.on_delete: Callable[[], None] = lambda: None
        self.calls: list[str] = []
        self.started: Any = None
        self.init_arguments: dict[str, Any] = {}
        self.on_init: Callable[[], None] = lambda: None
        monkeypatch.setattr(ray, "init", self._init)
        monkeypatch.setattr(ray, "cluster_resources", lambda: self.resources)
        monkeypatch.setattr(ray, "available_resources", lambda: self.resources)
        for name in ("start", "status", "run", "delete", "get_app_handle"):
            monkeypatch.setattr(serve, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(ray_cluster, "_STATUS_POLL_S", 0.001)

    def _init(self, **arguments: Any) -> None:
        self.init_arguments = arguments
        self.on_init()

    def _start(self, *, proxy_location: str) -> None:
        self.calls.append(f"start {proxy_location}")

    def _status(self) -> Any:
        from ray.serve.schema import ApplicationStatus

        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status is None:
            return SimpleNamespace(applications={})
        deployment = SimpleNamespace(message="Traceback\n  File x.py\nFileError: no such folder\n")
        found = SimpleNamespace(status=ApplicationStatus(status), deployments={"model": deployment})
        return SimpleNamespace(applications={APP: found})

    def _run(self, application: Any, *, name: str, route_prefix: None) -> None:
        assert route_prefix is None
        self.calls.append(f"run {name}")
        self.started = application._bound_deployment
        self.on_run()

    def _delete(self, name: str) -> None:
        self.calls.append(f"delete {name}")
        self.on_delete()

    def _get_app_handle(self, name: str) -> FakeHandle:
        assert name == APP
        return self.handle


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, environment: None) -> FakeCluster:
    assert environment is None
    return FakeCluster(monkeypatch)


def raising(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.usefixtures("environment")
def test_without_ray_there_is_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError) as caught:
        join_cluster(RayOptions())
    assert str(caught.value) == (
        "ray is not installed, and llava serve --ray needs it. Run: pip install 'internvl-chat-llava[ray]'"
    )


def test_a_cluster_of_ones_own_wants_a_token_and_has_no_dashboard(cluster: FakeCluster) -> None:
    join_cluster(RayOptions())
    assert cluster.init_arguments["address"] == "local"
    assert cluster.init_arguments["include_dashboard"] is False
    assert (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])) == ("token", 64)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert cluster.calls == ["start Disabled"]


def test_another_cluster_is_joined_by_its_own_rules(cluster: FakeCluster) -> None:
    join_cluster(RayOptions(address="head:6379"))
    assert cluster.init_arguments["address"] == "head:6379"
    assert "RAY_AUTH_MODE" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_cluster_that_cannot_be_joined_is_named(cluster: FakeCluster) -> None:
    from ray.exceptions import AuthenticationError

    for error in (
        ConnectionError("nobody is there\nsecond line"),
        TimeoutError("nobody is there"),
        RuntimeError("nobody is there: Version mismatch"),
        AuthenticationError("nobody is there"),
    ):
        cluster.on_init = raising(error)
        with pytest.raises(RemoteError, match="head:6379 cannot be used: nobody is there") as caught:
            join_cluster(RayOptions(address="head:6379"))
        assert "second line" not in caught.value.cause
        assert "--ray-address" in caught.value.remedy


def test_an_application_is_started_asked_and_ended(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dogs").mkdir()
    engine = deploy("dogs", ModelOptions(path="dogs"), RayOptions(max_running=3))
    assert cluster.calls == [f"run {APP}"]
    model, queue = cluster.started.init_args
    # Replicas have another working directory.
    assert model.path == str(tmp_path / "dogs")
    assert queue.max_running == 3
    assert engine.ask("What is it?") == "A dog."
    assert "note: It is small." in capsys.readouterr().err
    engine.close()
    engine.close()
    assert cluster.calls == [f"run {APP}", f"delete {APP}"]


@pytest.mark.parametrize("status", ["RUNNING", "UNHEALTHY"])
def test_what_runs_already_is_joined_and_left_alone(
    cluster: FakeCluster, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.statuses = [status]
    deploy("dogs", ModelOptions(), RayOptions()).close()
    assert cluster.calls == []
    told = capsys.readouterr().err
    assert "dogs runs on the cluster already" in told
    assert "warning: dogs differs there: bits is 4 and not None" in told


def test_options_that_differ_are_named() -> None:
    assert differences(ModelOptions(), ModelOptions()) == ""
    there = ModelOptions(path="/models/a", engine="torch")
    assert differences(there, ModelOptions(path="/models/b", engine="torch")) == (
        "path is '/models/a' and not '/models/b'"
    )


@pytest.mark.parametrize(
    ("statuses", "calls"),
    [
        (["DEPLOYING", "DEPLOYING", "RUNNING"], []),
        (["DELETING", "DELETING", None], [f"run {APP}"]),
        (["DEPLOYING", "DEPLOY_FAILED"], [f"run {APP}"]),
    ],
)
def test_a_change_by_another_process_is_waited_for(
    cluster: FakeCluster, statuses: list[str | None], calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.statuses = statuses
    engine = deploy("dogs", ModelOptions(), RayOptions())
    assert cluster.calls == calls
    engine.close()
    assert capsys.readouterr().err.count(f"waiting for {APP}") == 1


def test_a_process_that_was_lost_while_it_started_is_not_waited_for_for_ever(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "_CHANGE_TIMEOUT_S", 0.01)
    cluster.statuses = ["DEPLOYING"]
    deploy("dogs", ModelOptions(), RayOptions()).close()
    assert cluster.calls == [f"run {APP}", f"delete {APP}"]
    assert f"{APP} takes too long, and is started anew" in capsys.readouterr().err


def test_replicas_that_cannot_load_say_why_and_leave_nothing(cluster: FakeCluster) -> None:
    from ray.exceptions import RayActorError

    cluster.statuses = [None, "DEPLOY_FAILED"]
    cluster.on_run = raising(RuntimeError("Deploying application llava-dogs failed"))
    with pytest.raises(RemoteError, match="no replica of dogs can be started: FileError: no such folder"):
        deploy("dogs", ModelOptions(), RayOptions())
    assert cluster.calls == [f"run {APP}", f"delete {APP}"]
    cluster.statuses = [None]
    cluster.on_run = raising(RayActorError())
    with pytest.raises(RemoteError, match="can be started: The actor experienced an error"):
        deploy("dogs", ModelOptions(), RayOptions())


def test_what_the_cluster_lacks_is_said_before_waiting(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.resources = {"CPU": 8.0, "GPU": 1.0}
    deploy("dogs", ModelOptions(), RayOptions(min_replicas=2, max_replicas=2)).close()
    assert "note: dogs needs 2 GPUs, of which 1 are free" in capsys.readouterr().err
    assert cluster.started.ray_actor_options["num_gpus"] == 1


def test_an_application_that_cannot_be_ended_does_not_break_the_end(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.serve.exceptions import RayServeException

    engine = deploy("dogs", ModelOptions(), RayOptions())
    cluster.on_delete = raising(TimeoutError("60 s"))
    engine.close()
    assert "still answers other processes" in capsys.readouterr().err
    engine = deploy("dogs", ModelOptions(), RayOptions())
    cluster.on_delete = raising(RayServeException("the controller is gone"))
    engine.close()
    assert "could not be ended: the controller is gone" in capsys.readouterr().err
