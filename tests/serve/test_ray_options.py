"""The options of `llava serve --ray`; test_ray_cluster.py (slow) runs the cluster."""

from __future__ import annotations

import argparse

import pytest

from llava.engine.request import Request
from llava.errors import ConfigError
from llava.serve.command import add_arguments
from llava.serve.ray_engine import affinity_of
from llava.serve.ray_options import RayOptions, ray_options_of
from llava.templates import Turn


def options_of(*words: str) -> RayOptions | None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return ray_options_of(parser.parse_args(words))


def test_without_ray_there_are_no_options() -> None:
    assert options_of() is None


def test_an_address_means_ray_and_replicas_are_counted() -> None:
    found = options_of("--ray-address", "head:6379", "--min-replicas", "2")
    assert found is not None
    assert (found.address, found.min_replicas, found.max_replicas) == ("head:6379", 2, 2)
    grown = options_of("--ray", "--max-replicas", "4", "--target-ongoing", "3")
    assert grown is not None
    assert (grown.address, grown.min_replicas, grown.max_replicas, grown.target_ongoing) == (None, 1, 4, 3)


@pytest.mark.parametrize(
    "words",
    [
        ("--min-replicas", "0"),
        ("--min-replicas", "3", "--max-replicas", "2"),
        ("--target-ongoing", "0"),
        ("--replica-cpus", "-1"),
    ],
)
def test_what_no_cluster_can_do_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        options_of("--ray", *words)


def test_turns_of_one_conversation_have_one_key() -> None:
    first = Turn("user", ("What is it?",))
    later = [first, Turn("assistant", ("A dog.",)), Turn("user", ("What color?",))]
    assert affinity_of(Request(turns=[first])) == affinity_of(Request(turns=later))
    assert affinity_of(Request(turns=[first])) != affinity_of(Request(turns=[Turn("user", ("Who?",))]))
