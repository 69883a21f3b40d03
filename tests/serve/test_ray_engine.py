"""RayEngine over a handle without a cluster: what replicas send, and every way in which they fail to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from llava.engine.model_options import ModelOptions
from llava.engine.request import Request, SamplingParams, TokenLogprob
from llava.errors import (
    ContextLengthError,
    EngineError,
    InternalError,
    LlavaError,
    RemoteError,
    WorkerLostError,
)
from llava.processing.images import ImageSource
from llava.serve.ray_engine import RayEngine, affinity_of
from llava.templates import Turn
from tests.serve.ray_fakes import ANSWER, LOGPROB, FakeHandle, sent
from tests.serve.servers import wait_until

# Ray Serve uses what pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def endless() -> AsyncIterator[str]:
    while True:
        yield "word "
        await asyncio.sleep(0.002)


@contextmanager
def engine_over(handle: FakeHandle, **options: Any) -> Iterator[RayEngine]:
    engine = RayEngine(handle, **options)
    try:
        yield engine
    finally:
        engine.close()


def question(text: str = "What is it?", **sampling: Any) -> Request:
    return Request.of_question(text, sampling=SamplingParams(**sampling))


def task_error(cause: Exception) -> Exception:
    """Return what Ray makes of an exception in a replica."""
    error: Exception = RayTaskError("answer", f"Traceback:\n  File x.py\n{cause!r}", cause)
    return error


def test_pieces_and_answer_are_the_replicas() -> None:
    handle = FakeHandle(lambda _: sent("A ", "dog.", ANSWER))
    with engine_over(handle) as engine:
        stream = engine.submit(question(logprobs=1))
        assert list(stream) == ["A ", "dog."]
        answer = stream.answer
        request, affinity = handle.calls[0]
    assert replace(answer, timing=ANSWER.timing) == replace(
        ANSWER, logprobs=(TokenLogprob(LOGPROB.chosen, LOGPROB.top[:1]),)
    )
    assert answer.timing.image_s == 0.25
    assert affinity == affinity_of(request)
    assert not handle.given[0].is_cancelled.is_set()


def test_the_engine_says_what_its_replicas_are_and_counts_what_it_sends() -> None:
    def script(request: Request) -> AsyncIterator[Any]:
        is_wrong = request.turns[0].content[-1] == "wrong"
        return sent(ContextLengthError("too long") if is_wrong else ANSWER)

    with engine_over(FakeHandle(script)) as engine:
        assert (engine.name, engine.template.name) == ("replicas of echo", "vicuna_v1")
        assert engine.notices == ("It is small.",)
        assert engine.generate([question(), question("Who?")])[1].finish_reason == "stop"
        with pytest.raises(ContextLengthError):
            engine.ask("wrong")
        counted = engine.statistics()
    assert (counted.num_running, counted.num_finished, counted.num_failed) == (0, 2, 1)
    assert (counted.num_prompt_tokens, counted.num_cached_tokens, counted.num_new_tokens) == (14, 4, 6)


@pytest.mark.parametrize(
    ("script", "wanted", "pieces"),
    [
        (lambda: sent("A ", ContextLengthError("too long", remedy="Cut it.")), ContextLengthError, ["A "]),
        (lambda: sent("A ", then=task_error(ValueError("a bug"))), InternalError, ["A "]),
        # Ray raises the cause's own class too.
        (
            lambda: sent("A ", then=task_error(KeyError("k")).as_instanceof_cause()),  # type: ignore[attr-defined]
            InternalError,
            ["A "],
        ),
        (lambda: sent("A ", then=RayActorError()), WorkerLostError, ["A "]),
        (lambda: sent(then=ActorDiedError()), WorkerLostError, []),
        (lambda: sent("A ", "dog."), WorkerLostError, ["A ", "dog."]),
        # What Ray makes of a replica that it stopped.
        (lambda: sent("A ", then=asyncio.CancelledError()), WorkerLostError, ["A "]),  # type: ignore[arg-type]
    ],
    ids=["error-item", "bug", "bug-as-cause", "actor-lost", "actor-died", "broken-off", "stopped"],
)
def test_each_way_to_fail_has_its_error(
    script: Callable[[], AsyncIterator[Any]], wanted: type[LlavaError], pieces: list[str]
) -> None:
    got: list[str] = []
    with engine_over(FakeHandle(lambda _: script())) as engine:
        with pytest.raises(wanted) as caught:
            got.extend(engine.submit(question()))
        assert engine.statistics().num_failed == 1
    assert type(caught.value) is wanted
    assert caught.value.remedy
    assert got == pieces


def test_a_bugs_traceback_is_for_the_log_and_not_for_the_client(caplog: pytest.LogCaptureFixture) -> None:
    broken = FakeHandle(lambda _: sent(then=task_error(ValueError("/secret/path"))))
    with engine_over(broken) as engine, pytest.raises(InternalError) as caught:
        engine.ask("What is it?")
    assert "secret" not in str(caught.value)
    assert "/secret/path" in caplog.text


def test_ray_serves_own_refusals_are_a_lost_replica() -> None:
    from ray.serve.exceptions import RayServeException

    refusing = FakeHandle(lambda _: sent(then=RayServeException("unavailable")))
    with engine_over(refusing) as engine, pytest.raises(WorkerLostError):
        engine.ask("What is it?")


def test_a_reader_that_leaves_cancels_the_items() -> None:
    handle = FakeHandle(lambda _: endless())
    with engine_over(handle) as engine:
        stream = engine.submit(question())
        pieces = iter(stream)
        assert next(pieces) == "word "
        stream.cancel()
        assert handle.given[0].is_cancelled.wait(5)
        assert stream.answer.finish_reason == "cancelled"
        assert stream.answer.text.startswith("word")
        wait_until(lambda: engine.statistics().num_cancelled == 1)
        assert engine.statistics().num_running == 0


def test_choices_are_requests_with_seeds_of_their_own_and_one_affinity() -> None:
    handle = FakeHandle()
    with engine_over(handle) as engine:
        for stream in engine.choices(question(temperature=1, seed=5), 3):
            assert list(stream) == [ANSWER.text]
    assert sorted(request.sampling.seed or 0 for request, _ in handle.calls) == [5, 6, 7]
    assert len({affinity for _, affinity in handle.calls}) == 1


def test_closing_ends_what_runs_and_then_what_is_owned() -> None:
    handle = FakeHandle(lambda _: endless())
    closed: list[bool] = []
    engine = RayEngine(handle, on_close=lambda: closed.append(handle.given[0].is_cancelled.is_set()))
    stream = engine.submit(question())
    pieces = iter(stream)
    next(pieces)
    engine.close()
    engine.close()
    assert closed == [True]
    with pytest.raises(EngineError, match="closed") as caught:
        list(pieces)
    assert type(caught.value) is EngineError
    with pytest.raises(EngineError, match="closed"):
        engine.submit(question())


def test_replicas_of_another_release_or_without_a_word_are_refused() -> None:
    from llava.serve.ray_replica import Description

    older = Description("echo", "vicuna_v1", (), False, ModelOptions(), version="0.0.1")
    with pytest.raises(RemoteError, match=r"release 0\.0\.1"):
        RayEngine(FakeHandle(description=older))
    for error in (ActorDiedError(), TimeoutError("after 1 s"), task_error(TypeError("no field"))):
        with pytest.raises(RemoteError, match="no replica says what it is"):
            RayEngine(FakeHandle(description=error))


def test_turns_of_one_conversation_have_one_key() -> None:
    first = Turn("user", ("What is it?",))
    later = [first, Turn("assistant", ("A dog.",)), Turn("user", ("What color?",))]
    assert affinity_of(Request(turns=[first])) == affinity_of(Request(turns=later))
    assert affinity_of(Request(turns=[first])) != affinity_of(Request(turns=[Turn("user", ("Who?",))]))
    prompts = [Request(prompt="USER: Who?"), Request(prompt="USER: \ud800?")]
    assert len({affinity_of(prompt) for prompt in prompts}) == 2


def test_the_first_picture_is_the_key_whatever_is_asked_about_it() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    key = affinity_of(Request.of_question("What?", [red]))
    assert key == affinity_of(Request.of_question("Who?", [red.copy(), blue]))
    others: list[ImageSource] = [blue, Image.new("RGB", (2, 8), "red"), red.convert("L"), "red.png"]
    assert len({key, *(affinity_of(Request.of_question("What?", [other])) for other in others)}) == 5
