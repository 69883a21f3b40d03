"""Who is there and who is asked, with a clock that only the test moves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llava.errors import ConfigError
from llava.serve.protocol import WorkerStatus
from llava.serve.registry import Registry, RegistryOptions


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def registry_of(
    workers: dict[str, WorkerStatus], *, clock: Clock | None = None, options: RegistryOptions | None = None
) -> Registry:
    registry = Registry(options or RegistryOptions(), clock or Clock(), random.Random(0))
    for address, status in workers.items():
        registry.register(address, status, check_heart_beat=True)
    return registry


def status(*models: str, speed: float = 1, queue_length: int = 0) -> WorkerStatus:
    return WorkerStatus(models or ("m",), speed, queue_length)


def chosen(registry: Registry, model: str = "m", *, affinity: str = "") -> str:
    worker = registry.choose(model, affinity=affinity)
    return worker.address if worker is not None else ""


def test_models_are_listed_once() -> None:
    registry = registry_of({"a": status("x", "y"), "b": status("x")})
    assert registry.models() == ["x", "y"]
    assert chosen(registry, "z") == ""
    assert chosen(registry, "y") == "a"


def test_the_shortest_queue_counts_speed_and_what_was_just_sent() -> None:
    registry = registry_of({"slow": status(speed=1, queue_length=2), "fast": status(speed=4, queue_length=4)})
    # 2/1 against 4/4, 5/4, 6/4, 7/4, 8/4: the tie goes to the one that came first.
    assert [chosen(registry) for _ in range(6)] == ["fast"] * 4 + ["slow", "fast"]


def test_a_heartbeat_replaces_what_was_counted_here() -> None:
    registry = registry_of({"a": status(), "b": status(queue_length=1)})
    assert [chosen(registry), chosen(registry)] == ["a", "a"]
    assert registry.heart_beat("a", 0)
    assert chosen(registry) == "a"
    assert not registry.heart_beat("unknown", 0)


def test_the_lottery_draws_by_speed() -> None:
    registry = registry_of(
        {"slow": status(speed=1), "fast": status(speed=3)}, options=RegistryOptions(dispatch="lottery")
    )
    counts = Counter(chosen(registry) for _ in range(4000))
    assert 0.72 < counts["fast"] / 4000 < 0.78


def test_a_silent_worker_is_removed_and_the_reason_kept() -> None:
    clock = Clock()
    registry = registry_of({"a": status(), "b": status("other")}, clock=clock)
    registry.register("c", status("third"), check_heart_beat=False)
    clock.now += 20
    registry.heart_beat("b", 0)
    clock.now += 10.5
    assert [removal.address for removal in registry.remove_expired()] == ["a"]
    assert registry.remove_expired() == []
    assert registry.models() == ["other", "third"]
    assert registry.removals[0].reason == "no heartbeat for 30 s"
    assert not registry.heart_beat("a", 0)


def test_a_worker_that_comes_back_is_there_once() -> None:
    registry = registry_of({"a": status("m", "n")})
    registry.remove("a", "stopped")
    registry.register("a", status("m"), check_heart_beat=True)
    registry.register("a", status("m"), check_heart_beat=True)
    assert [worker.address for worker in registry.workers] == ["a"]
    assert registry.models() == ["m"]


def test_a_conversation_stays_with_its_worker() -> None:
    registry = registry_of({"a": status(), "b": status()})
    home = chosen(registry, affinity="talk")
    others = [chosen(registry, affinity=f"other {n}") for n in range(3)]
    assert set(others) == {"a", "b"}
    assert [chosen(registry, affinity="talk") for _ in range(3)] == [home] * 3


def test_a_conversation_leaves_a_worker_that_is_much_busier_or_gone() -> None:
    registry = registry_of({"a": status(), "b": status()}, options=RegistryOptions(affinity_slack=2))
    assert chosen(registry, affinity="talk") == "a"
    registry.heart_beat("a", 2)
    assert chosen(registry, affinity="talk") == "a"
    assert chosen(registry, affinity="talk") == "b"
    assert chosen(registry, affinity="talk") == "b"
    registry.remove("b", "stopped")
    assert chosen(registry, affinity="talk") == "a"


def test_conversations_are_forgotten_at_last() -> None:
    registry = registry_of({"a": status(), "b": status()}, options=RegistryOptions(max_conversations=10))
    for number in range(100):
        registry.choose("m", affinity=str(number))
    assert len(registry._homes) == 10


def test_all_workers_are_one_to_a_controller_above() -> None:
    registry = registry_of(
        {"a": status("x", speed=1, queue_length=2), "b": status("y", speed=2, queue_length=3)}
    )
    together = registry.status()
    assert (together.model_names, together.speed, together.queue_length) == (("x", "y"), 3, 5)
    assert Registry().status().to_json()["model_names"] == []


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="shortest_queue"):
        RegistryOptions(dispatch="shortest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expiry_s"):
        RegistryOptions(expiry_s=0)
