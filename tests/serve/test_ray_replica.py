"""Which replica is given a conversation, and what a replica does with it; without a cluster."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import pytest

pytest.importorskip("ray")

import llava
from llava.engine.model_options import ModelOptions
from llava.engine.request import Answer, Request
from llava.errors import InternalError, PromptError
from llava.serve.request_queue import QueueOptions
from tests.serve.engines import EchoEngine, endless, failing_after
from tests.serve.servers import wait_until

# Ray Serve uses what pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class ReplicaId(NamedTuple):
    unique_id: str


class FakeReplica:
    """What a router sees of a replica."""

    def __init__(self, name: str, *, num_ongoing: int = 0) -> None:
        self.replica_id = ReplicaId(name)
        self.max_ongoing_requests = 2
        self.num_ongoing = num_ongoing
        self.num_asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        assert deadline_s
        self.num_asked += 1
        return self.num_ongoing


def pending(affinity: str | None) -> Any:
    """Return a request as Ray shows it to the router; None: one without arguments."""
    from ray.serve._private.common import RequestMetadata
    from ray.serve.request_router import PendingRequest

    metadata = RequestMetadata(request_id="r", internal_request_id=f"i-{affinity}")
    args = [] if affinity is None else [object(), affinity]
    return PendingRequest(args=args, kwargs={}, metadata=metadata)


def new_router() -> Any:
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID

    from llava.serve.ray_replica import ConversationRouter

    return ConversationRouter(DeploymentID("model", "llava-x"), DeploymentHandleSource.UNKNOWN)


def chosen(replicas: list[FakeReplica], affinity: str | None) -> list[list[str]]:
    async def choose() -> list[list[FakeReplica]]:
        groups: list[list[FakeReplica]] = await new_router().choose_replicas(replicas, pending(affinity))
        return groups

    return [[replica.replica_id.unique_id for replica in group] for group in asyncio.run(choose())]


def homes(names: list[str], num_conversations: int = 1000) -> dict[str, str]:
    """Return which replica each conversation has."""
    from llava.serve.ray_replica import weight

    keys = [f"conversation {index}" for index in range(num_conversations)]
    return {key: max(names, key=lambda name: weight(key, name)) for key in keys}


def test_a_conversation_has_one_home_whatever_the_order_and_then_the_others() -> None:
    replicas = [FakeReplica(name) for name in ("a", "b", "c", "d")]
    first = chosen(replicas, "x")
    assert first == [[homes_of("x", "abcd")], [name for name in "abcd" if name != first[0][0]]]
    assert chosen(replicas[::-1], "x")[0] == first[0]
    assert {chosen(replicas, f"conversation {index}")[0][0] for index in range(40)} == set("abcd")


def homes_of(affinity: str, names: str) -> str:
    from llava.serve.ray_replica import weight

    return max(names, key=lambda name: weight(affinity, name))


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_with_one_or_two_candidates_each_is_offered_once(names: list[str]) -> None:
    groups = chosen([FakeReplica(name) for name in names], "x")
    assert [len(group) for group in groups] == [1] * len(names)
    assert sorted(name for group in groups for name in group) == names


def test_requests_without_a_conversation_go_to_any() -> None:
    replicas = [FakeReplica("a"), FakeReplica("b")]
    assert sorted(name for group in chosen(replicas, None) for name in group) == ["a", "b"]
    assert chosen([], "x") == [[]]
    groups = asyncio.run(new_router().choose_replicas(replicas, None))
    assert groups == [replicas]


def test_a_replica_that_goes_moves_its_own_conversations_only() -> None:
    before, after = homes(["a", "b", "c", "d"]), homes(["a", "b", "d"])
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {key for key in before if before[key] == "c"}
    # They do not all fall upon one other.
    assert min(Counter(after[key] for key in moved).values()) > 0.2 * len(moved)
    assert homes(["d", "c", "b", "a"]) == before


@pytest.mark.parametrize("num_replicas", [2, 3, 8])
def test_conversations_are_spread_evenly(num_replicas: int) -> None:
    counts = Counter(homes([f"replica-{index}" for index in range(num_replicas)]).values())
    mean = 1000 / num_replicas
    assert len(counts) == num_replicas
    # Five standard deviations of a fair draw; the keys are fixed, so that it holds always or never.
    bound = 5 * (mean * (1 - 1 / num_replicas)) ** 0.5
    assert all(abs(count - mean) < bound for count in counts.values()), counts


async def routed(router: Any, replicas: list[FakeReplica], affinity: str) -> str:
    """Let Ray's own loop choose."""
    router.update_replicas(replicas)
    replica: FakeReplica = await router._choose_replica_for_request(pending(affinity))
    return replica.replica_id.unique_id


def test_ray_takes_the_home_and_another_one_when_it_is_full() -> None:
    async def route() -> None:
        replicas = [FakeReplica(name) for name in ("a", "b", "c")]
        home = homes_of("x", "abc")
        assert await routed(new_router(), replicas, "x") == home
        for replica in replicas:
            replica.num_ongoing = 2 if replica.replica_id.unique_id == home else 1
        assert await routed(new_router(), replicas, "x") != home

    asyncio.run(route())


def test_waiting_for_a_place_is_not_a_busy_loop() -> None:
    async def wait() -> None:
        replicas = [FakeReplica(name, num_ongoing=2) for name in ("a", "b")]
        waiting = asyncio.ensure_future(routed(new_router(), replicas, "x"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert 2 <= sum(replica.num_asked for replica in replicas) < 40
        replicas[0].num_ongoing = 0
        assert await asyncio.wait_for(waiting, 10) == "a"

    asyncio.run(wait())


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> EchoEngine:
    """The engine of replicas that are made in a test."""
    from llava.serve import ray_replica

    engine = EchoEngine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setattr(ray_replica, "load_engine", lambda _: engine)
    return engine


def new_replica(*, has_gpu: bool = True, max_running: int = 4) -> Any:
    from llava.serve.ray_replica import Replica

    return Replica(ModelOptions(bits=8), QueueOptions(max_running=max_running), has_gpu=has_gpu)


def question() -> Request:
    return Request.of_question("Hello")


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_a_replica_describes_itself_and_gives_pieces_and_the_answer(echo: EchoEngine) -> None:
    replica = new_replica()
    described = replica.describe()
    assert described == ("echo", "vicuna_v1", (), False, ModelOptions(bits=8), llava.__version__)
    *pieces, answer = asyncio.run(collect(replica.answer(question(), "x")))
    assert isinstance(answer, Answer)
    assert "".join(pieces).strip() == answer.text == "heard: Hello pictures: []"
    replica.__del__()
    assert echo.is_closed


def test_a_replica_sees_gpus_only_where_one_was_set_aside_for_it(echo: EchoEngine) -> None:
    assert echo.name
    new_replica()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    new_replica(has_gpu=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_an_error_of_ours_is_an_item_and_a_bug_is_raised(echo: EchoEngine) -> None:
    replica = new_replica()
    echo.error = PromptError("no such turn", remedy="Leave it out.")
    (error,) = asyncio.run(collect(replica.answer(question(), "x")))
    assert (type(error), str(error)) == (PromptError, "no such turn. Leave it out.")
    echo.pieces = failing_after("A ", error=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(collect(replica.answer(question(), "x")))


def test_a_replica_whose_answers_only_break_off_says_that_it_is_broken(echo: EchoEngine) -> None:
    whole = echo.pieces

    async def break_off(replica: Any, num_times: int) -> None:
        echo.pieces = failing_after("A ", error=RuntimeError("CUDA error: an illegal memory access"))
        for _ in range(num_times):
            with pytest.raises(RuntimeError):
                await collect(replica.answer(question(), "x"))
        echo.pieces = whole

    async def use(replica: Any) -> None:
        await break_off(replica, 2)
        replica.check_health()
        await collect(replica.answer(question(), "x"))
        await break_off(replica, 2)
        replica.check_health()
        await break_off(replica, 1)
        # What is wrong with a request says nothing about the replica.
        echo.error = PromptError("no such turn")
        await collect(replica.answer(question(), "x"))
        with pytest.raises(InternalError, match="the last 3 answers broke off"):
            replica.check_health()

    asyncio.run(asyncio.wait_for(use(new_replica()), 20))


def test_a_reader_that_leaves_a_replica_ends_the_answer_and_is_no_fault(echo: EchoEngine) -> None:
    echo.pieces = endless()

    async def until(holds: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, lambda: wait_until(holds))

    async def use(replica: Any) -> None:
        for _ in range(3):
            items = replica.answer(question(), "x")
            assert await anext(items) == "word "
            await items.aclose()
        await until(lambda: echo.ends == ["cancelled"] * 3)
        reading = asyncio.ensure_future(collect(replica.answer(question(), "x")))
        await until(lambda: len(echo.requests) == 4)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: echo.ends == ["cancelled"] * 4)
        replica.check_health()

    asyncio.run(asyncio.wait_for(use(new_replica()), 20))


@pytest.fixture(autouse=True)
def _ray_stays_out_of_reach() -> Iterator[None]:
    """Nothing here may start or join a cluster."""
    import ray

    yield
    assert not ray.is_initialized()
