"""The options of `llava serve --ray`, and what Ray is told; test_ray_cluster.py (slow) runs a cluster."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from llava.engine.model_options import ModelOptions
from llava.errors import ConfigError
from llava.serve.command import add_arguments
from llava.serve.ray_cluster import application, deployment_options, num_gpus_of, shortage
from llava.serve.ray_options import RayOptions, ray_options_of
from llava.serve.request_queue import QueueOptions

# Ray Serve uses what pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def options_of(*words: str) -> RayOptions | None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return ray_options_of(parser.parse_args(words))


def given(*words: str) -> RayOptions:
    found = options_of("--ray", *words)
    assert found is not None
    return found


def test_without_ray_there_are_no_options() -> None:
    assert options_of() is None
    with pytest.raises(ConfigError, match="min_replicas without a cluster"):
        options_of("--min-replicas", "2")


def test_an_address_means_ray_and_replicas_are_counted() -> None:
    found = options_of("--ray-address", "head:6379", "--min-replicas", "2")
    assert found is not None
    assert (found.address, found.min_replicas, found.max_replicas) == ("head:6379", 2, 2)
    grown = given("--max-replicas", "4", "--target-ongoing", "3", "--max-running", "5")
    assert (grown.address, grown.min_replicas, grown.max_replicas) == (None, 1, 4)
    assert (grown.target_ongoing, grown.max_running) == (3, 5)


@pytest.mark.parametrize(
    "words",
    [
        "--min-replicas 0",
        "--min-replicas 3 --max-replicas 2",
        "--target-ongoing 0",
        "--max-running 0",
        "--replica-cpus -1",
        "--replica-cpus nan",
        "--replica-gpus inf",
        "--replica-gpus 1.5",
        "--device cuda:1",
        "--device cuda --replica-gpus 0",
        "--device cpu --replica-gpus 1",
    ],
)
def test_what_no_cluster_can_do_is_refused(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_of("--ray", *words.split())
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("words", "cluster_gpus", "wanted"),
    [
        ("--device cuda", 0, 1.0),  # Ray waits for a machine that has one
        ("--device cuda:0", 8, 1.0),
        ("--device cuda --replica-gpus 0.5", 8, 0.5),
        ("--device cpu", 8, 0.0),
        ("", 8, 1.0),
        ("--device auto", 8, 1.0),
        ("", 0, 0.0),
        ("--replica-gpus 2", 8, 2.0),
        ("--replica-gpus 0", 8, 0.0),
        ("--engine openvino", 8, 0.0),
    ],
)
def test_a_replica_gets_the_gpus_that_its_device_needs(words: str, cluster_gpus: int, wanted: float) -> None:
    options = given(*words.split())
    engine: Any = "openvino" if "openvino" in words else "auto"
    assert num_gpus_of(ModelOptions(engine=engine), options, cluster_gpus=cluster_gpus) == wanted


def test_an_endpoint_needs_no_gpu() -> None:
    endpoint = ModelOptions(path="http://127.0.0.1:1/v1")
    assert num_gpus_of(endpoint, given(), cluster_gpus=8) == 0


def test_what_the_cluster_lacks_is_named() -> None:
    options = given("--min-replicas", "2", "--replica-cpus", "3")
    assert shortage(options, 1.0, {"CPU": 6.0, "GPU": 2.0}) == ""
    assert shortage(options, 0.0, {"CPU": 8.0}) == ""
    missing = "6 CPUs, of which 4 are free and 2 GPUs, of which 0 are free"
    assert shortage(options, 1.0, {"CPU": 4.0}) == missing


def test_the_deployments_arguments_are_the_options() -> None:
    pytest.importorskip("ray")
    from llava.serve.ray_replica import ConversationRouter

    words = "--min-replicas 2 --max-replicas 5 --target-ongoing 3 --max-running 7 --replica-cpus 4"
    made = deployment_options(given(*words.split()), 0.5)
    scaling = made["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3)
    assert made["max_ongoing_requests"] == 7
    assert made["ray_actor_options"] == {"num_cpus": 4.0, "num_gpus": 0.5}
    assert made["request_router_config"].get_request_router_class() is ConversationRouter
    # A replica that is not needed any more may finish the longest answer there can be.
    assert made["graceful_shutdown_timeout_s"] == QueueOptions().answer_timeout_s
    # Ray ends a replica at the third failed check.
    assert 3 * made["health_check_period_s"] <= 30


@pytest.mark.parametrize(
    ("device", "num_gpus", "device_map"),
    [("cuda", 1.0, None), ("cuda", 2.0, "auto"), (None, 2.0, "auto"), ("cpu", 0.0, None), (None, 0.5, None)],
)
def test_ray_takes_the_deployment_and_its_replica_is_told_of_its_gpus(
    device: str | None, num_gpus: float, device_map: str | None
) -> None:
    pytest.importorskip("ray")
    bound = application(ModelOptions(device=device), given("--max-running", "7"), num_gpus)
    deployment = bound._bound_deployment
    assert deployment.max_ongoing_requests == 7
    assert deployment.ray_actor_options["num_gpus"] == num_gpus
    assert deployment.init_args == (
        ModelOptions(device=device, device_map=device_map),  # type: ignore[arg-type]
        QueueOptions(max_running=7),
    )
    assert deployment.init_kwargs == {"has_gpu": num_gpus > 0}
