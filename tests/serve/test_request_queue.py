"""The bounded queue between an event loop and an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from llava.engine.request import Answer, Request
from llava.errors import AnswerTimeoutError, ConfigError, EngineBusyError, ServerBusyError
from llava.serve.request_queue import ClientGoneError, QueueOptions, RequestQueue
from tests.serve.engines import EchoEngine, endless, failing_after


def request() -> Request:
    return Request.of_question("Hello")


async def until(holds: Callable[[], object]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never held")


async def read(queue: RequestQueue, num_choices: int = 1) -> list[Answer]:
    async with queue.events(request, num_choices=num_choices) as events:
        return [event.answer async for event in events if event.answer is not None]


def run(engine: EchoEngine, options: QueueOptions | None, test: Callable[[RequestQueue], object]) -> None:
    async def main() -> None:
        queue = RequestQueue(engine, options)
        try:
            await test(queue)  # type: ignore[misc]
        finally:
            engine.gate.set()
            queue.close()
        await until(lambda: queue.num_running == 0)

    asyncio.run(main())


def test_pieces_and_answer_arrive_in_order() -> None:
    async def test(queue: RequestQueue) -> None:
        async with queue.events(request) as events:
            found = [event async for event in events]
        assert "".join(event.piece or "" for event in found).strip() == "heard: Hello pictures: []"
        assert [event.answer is not None for event in found] == [False] * (len(found) - 1) + [True]

    run(EchoEngine(), None, test)


def test_whoever_wants_the_answer_alone_is_told_of_its_beginning_and_end() -> None:
    async def test(queue: RequestQueue) -> None:
        async with queue.events(request, num_choices=2, wants_pieces=False) as events:
            found = [event async for event in events]
        kinds = sorted((event.index, event.answer is not None) for event in found)
        assert kinds == [(0, False), (0, True), (1, False), (1, True)]

    run(EchoEngine(), None, test)


def test_every_choice_is_read() -> None:
    async def test(queue: RequestQueue) -> None:
        assert len(await read(queue, 3)) == 3

    run(EchoEngine(), QueueOptions(max_running=3), test)


def test_more_choices_than_places_are_refused() -> None:
    async def test(queue: RequestQueue) -> None:
        with pytest.raises(ConfigError, match="n is 3"):
            await read(queue, 3)

    run(EchoEngine(), QueueOptions(max_running=2), test)


def test_one_request_too_many_is_refused_at_once_and_those_that_wait_are_served() -> None:
    engine = EchoEngine()
    engine.gate.clear()

    async def test(queue: RequestQueue) -> None:
        tasks = [asyncio.ensure_future(read(queue)) for _ in range(5)]
        await until(lambda: (queue.num_running, queue.num_waiting) == (2, 3))
        with pytest.raises(ServerBusyError, match="3 requests are waiting"):
            await read(queue)
        engine.gate.set()
        assert len([await task for task in tasks]) == 5

    run(engine, QueueOptions(max_running=2, max_waiting=3), test)


def test_a_wide_request_is_not_overtaken_by_narrow_ones() -> None:
    engine = EchoEngine()
    engine.gate.clear()

    async def test(queue: RequestQueue) -> None:
        tasks = [asyncio.ensure_future(read(queue, num)) for num in (1, 2, 1)]
        await until(lambda: queue.num_waiting == 2)
        assert queue.num_running == 1
        engine.gate.set()
        for task in tasks:
            await task

    run(engine, QueueOptions(max_running=2), test)


def test_leaving_ends_the_answer_whether_it_runs_or_waits() -> None:
    engine = EchoEngine(endless())

    async def test(queue: RequestQueue) -> None:
        async with queue.events(request) as events:
            assert (await anext(events)).piece == "word "
            waiting = asyncio.ensure_future(read(queue))
            await until(lambda: queue.num_waiting == 1)
            waiting.cancel()
            await until(lambda: queue.num_waiting == 0)
        await until(lambda: engine.ends == ["cancelled"])
        assert len(engine.requests) == 1

    run(engine, QueueOptions(max_running=1), test)


def test_a_client_that_leaves_ends_the_answer() -> None:
    engine = EchoEngine(endless())

    async def test(queue: RequestQueue) -> None:
        gone = asyncio.Event()

        async def leave() -> None:
            async with queue.events(request, until_gone=gone.wait) as events:
                async for _ in events:
                    gone.set()

        with pytest.raises(ClientGoneError):
            await leave()
        await until(lambda: engine.ends == ["cancelled"])

    run(engine, None, test)


def test_a_client_that_leaves_during_preparation_costs_no_answer() -> None:
    engine = EchoEngine(endless())
    may_go_on = threading.Event()

    def prepare() -> Request:
        may_go_on.wait(5)
        return request()

    async def test(queue: RequestQueue) -> None:
        with pytest.raises(ClientGoneError):
            async with queue.events(prepare, until_gone=lambda: asyncio.sleep(0.01)) as events:
                await anext(events)
        may_go_on.set()
        await until(lambda: engine.num_cancel_calls == 1)

    run(engine, None, test)


def test_an_answer_that_takes_too_long_is_ended() -> None:
    engine = EchoEngine(endless())

    async def test(queue: RequestQueue) -> None:
        with pytest.raises(AnswerTimeoutError, match=r"after 0\.1 seconds"):
            await read(queue)
        await until(lambda: engine.ends == ["cancelled"])

    run(engine, QueueOptions(answer_timeout_s=0.1), test)


def test_errors_reach_the_reader_and_the_place_is_free_again() -> None:
    engine = EchoEngine(failing_after("a", error=ZeroDivisionError("at the second piece")))

    async def test(queue: RequestQueue) -> None:
        for _ in range(100):
            with pytest.raises(ZeroDivisionError):
                await read(queue)
        engine.error = EngineBusyError("full")
        with pytest.raises(EngineBusyError):
            await read(queue)
        await until(lambda: queue.num_running == 0)

    run(engine, QueueOptions(max_running=2, max_waiting=1), test)


@pytest.mark.parametrize("wrong", [{"max_running": 0}, {"max_waiting": -1}, {"answer_timeout_s": 0}])
def test_options_out_of_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        QueueOptions(**wrong)
