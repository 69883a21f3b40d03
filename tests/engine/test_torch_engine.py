"""The torch engine on the tiny checkpoints, against transformers' `generate` on a model of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.engine.engine import EngineOptions
from llava.engine.frontend import Frontend
from llava.engine.protocol import read
from llava.engine.request import Request, SamplingParams
from llava.engine.scheduler import SchedulerOptions
from llava.engine.torch_engine import TorchEngine
from llava.errors import ConfigError, EngineBusyError, EngineError
from llava.model.builder import LoadedModel, LoadOptions, load_model
from llava.templates import PICTURE, Turn

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
IMAGES = [str(FIXTURES / "images" / f"{number}.png") for number in range(4)]
FOLDERS = ("llava-a-clip-mlp2x", "llava-b-internvit-mlp2x")
QUESTIONS = ("What is shown?", "What is shown here, please?", "Compare them.", "Who are you?")


def load(name: str) -> LoadedModel:
    return load_model(FIXTURES / name, LoadOptions(device="cpu", dtype="float32"))


@lru_cache(maxsize=2)
def reference(name: str) -> LoadedModel:
    """Return a model that no engine touches."""
    return load(name)


@lru_cache(maxsize=256)
def generated(
    name: str, question: int, pictures: tuple[int, ...], num_tokens: int, beams: int = 1
) -> tuple[int, ...]:
    """Return what transformers' `generate` answers, greedily."""
    loaded = reference(name)
    frontend = Frontend.of_loaded(loaded)
    batch = frontend.processor([turn(question, len(pictures))], [IMAGES[number] for number in pictures])
    ids = loaded.model.generate(**batch, do_sample=False, max_new_tokens=num_tokens, num_beams=beams)
    return tuple(ids[0, batch["input_ids"].shape[1] :].tolist())


def turn(question: int, num_pictures: int) -> Turn:
    return Turn("user", (*((PICTURE, "\n") * num_pictures), QUESTIONS[question]))


def request(question: int, pictures: tuple[int, ...], num_tokens: int, **sampling: int) -> Request:
    return Request(
        turns=[turn(question, len(pictures))],
        images=[IMAGES[number] for number in pictures],
        sampling=SamplingParams(max_new_tokens=num_tokens, **sampling),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module", params=FOLDERS)
def engine(request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    engine = TorchEngine(load(request.param))
    yield engine
    engine.close()


def name_of(engine: TorchEngine) -> str:
    return engine.loaded.checkpoint.path.name


CASE = st.tuples(
    st.integers(0, 3),  # question
    st.lists(st.integers(0, 3), max_size=2).map(tuple),  # pictures
    st.sampled_from([1, 6, 12]),  # new tokens
    st.floats(0, 0.01),  # seconds after the one before
    st.one_of(st.none(), st.integers(0, 3)),  # cancelled after so many pieces
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cases=st.lists(CASE, min_size=1, max_size=6),
    prefill_tokens=st.sampled_from([7, 64, 1024]),
    prefix_bytes=st.sampled_from([0, 1 << 20]),
    max_rows=st.sampled_from([2, 16]),
)
def test_whenever_requests_come_answers_are_those_of_generate(
    engine: TorchEngine,
    cases: list[tuple[int, tuple[int, ...], int, float, int | None]],
    prefill_tokens: int,
    prefix_bytes: int,
    max_rows: int,
) -> None:
    scheduling = SchedulerOptions(max_rows, prefill_tokens, prefix_bytes)
    feature_bytes = 0 if prefix_bytes == 0 else 1 << 20
    tried = TorchEngine(engine.loaded, EngineOptions(scheduling, feature_bytes))
    results: dict[int, tuple[int, ...]] = {}
    threads = [
        threading.Thread(target=_ask, args=(tried, case, results, index)) for index, case in enumerate(cases)
    ]
    for thread, (*_, gap_s, _) in zip(threads, cases, strict=True):
        time.sleep(gap_s)
        thread.start()
    for thread in threads:
        thread.join()
    tried.close()
    for index, (question, pictures, num_tokens, _, cancelled) in enumerate(cases):
        whole = generated(name_of(engine), question, pictures, num_tokens)
        got = results[index]
        assert got == (whole if cancelled is None else whole[: len(got)])


def _ask(
    engine: TorchEngine,
    case: tuple[int, tuple[int, ...], int, float, int | None],
    results: dict[int, tuple[int, ...]],
    index: int,
) -> None:
    question, pictures, num_tokens, _, cancelled = case
    stream = engine.submit(request(question, pictures, num_tokens))
    for number, _ in enumerate(stream):
        if number == cancelled:
            stream.cancel()
    results[index] = stream.answer.token_ids


def test_the_second_question_about_a_picture_computes_neither_it_nor_its_beginning(
    engine: TorchEngine,
) -> None:
    fresh = TorchEngine(engine.loaded)
    first = read(fresh.submit(request(0, (0,), 4)))
    second = read(fresh.submit(request(1, (0,), 4)))
    assert first.num_cached_tokens == 0
    assert first.timing.image_s > 0
    assert second.num_cached_tokens > fresh.processor.num_image_tokens
    assert second.timing.image_s == 0
    statistics = fresh.statistics()
    assert statistics.num_images == 2
    assert statistics.num_cached_images == 1
    assert statistics.num_finished == 2
    assert statistics.cache_bytes > 0
    fresh.close()


def test_the_same_pixels_by_another_name_are_the_same_picture(engine: TorchEngine) -> None:
    fresh = TorchEngine(engine.loaded)
    for image in (IMAGES[1], Image.open(IMAGES[1]).convert("RGB"), Path(IMAGES[1]).read_bytes()):
        fresh.ask("What is it?", [image], max_new_tokens=2)
    assert fresh.statistics().num_cached_images == 2
    fresh.close()


def test_beams_are_those_of_generate(engine: TorchEngine) -> None:
    expected = generated(name_of(engine), 0, (0,), 8, 3)
    assert read(engine.submit(request(0, (0,), 8, num_beams=3))).token_ids == expected


def test_log_probabilities_are_those_of_the_model(engine: TorchEngine) -> None:
    answer = read(engine.submit(request(0, (0,), 3, logprobs=4)))
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.num_new_tokens
    loaded = reference(name_of(engine))
    batch = Frontend.of_loaded(loaded).processor([turn(0, 1)], IMAGES[:1])
    with torch.inference_mode():
        scores = loaded.model(**batch).logits[0, -1].log_softmax(-1)
    first = answer.logprobs[0]
    assert first.chosen == first.top[0]
    assert [choice.token_id for choice in first.top] == scores.topk(4).indices.tolist()
    torch.testing.assert_close(
        torch.tensor([choice.logprob for choice in first.top]), scores.topk(4).values, atol=2e-5, rtol=0
    )


def test_several_answers_to_one_question_differ_by_their_seeds(engine: TorchEngine) -> None:
    sampling = {"temperature": 1, "seed": 5}
    texts = [read(stream).text for stream in engine.choices(request(0, (0,), 12, **sampling), 4)]
    assert len(set(texts)) > 1
    seventh = read(engine.submit(request(0, (0,), 12, temperature=1, seed=7))).text
    assert texts[2] == seventh
    with pytest.raises(ConfigError, match="n is 0"):
        engine.choices(request(0, (0,), 1), 0)


def test_choices_that_cannot_all_begin_are_all_given_up(engine: TorchEngine) -> None:
    small = TorchEngine(engine.loaded, EngineOptions(SchedulerOptions(max_rows=1, max_waiting=1)))
    with pytest.raises(EngineBusyError):
        small.choices(request(0, (), 400), 16)
    deadline = time.monotonic() + 5
    while small.statistics().num_cancelled < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert small.statistics().num_cancelled >= 1
    assert small.statistics().num_running == 0
    small.close()


def test_cancelling_ends_decoding_soon(engine: TorchEngine) -> None:
    stream = engine.submit(request(2, (0, 1), 1000))
    next(iter(stream))
    stream.cancel()
    assert stream.answer.finish_reason == "cancelled"
    assert stream.answer.num_new_tokens < 1000
    assert engine.statistics().num_running == 0


def test_one_waiting_request_too_many_is_refused_and_a_closed_engine_answers_nothing(
    engine: TorchEngine,
) -> None:
    options = EngineOptions(SchedulerOptions(max_rows=1, max_waiting=1))
    small = TorchEngine(engine.loaded, options)
    streams = [small.submit(request(0, (), 400))]
    with pytest.raises(EngineBusyError, match="waiting"):
        streams.extend(small.submit(request(0, (), 400)) for _ in range(50))
    small.close()
    with pytest.raises(EngineError, match="closed"):
        read(streams[0])
    with pytest.raises(EngineError, match="closed"):
        small.submit(request(0, (), 1))
    small.close()


def test_an_engine_without_memory_says_so_and_goes_on(engine: TorchEngine) -> None:
    small = TorchEngine(engine.loaded, EngineOptions(cache_bytes=1 << 17))
    with pytest.raises(EngineError, match="more than the engine has memory for"):
        small.ask("word " * 200, max_new_tokens=300)
    assert small.ask("Hi", max_new_tokens=2) is not None
    assert small.statistics().num_failed == 1
    small.close()


def test_what_breaks_in_the_engine_reaches_the_reader_and_the_engine_goes_on(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = TorchEngine(engine.loaded)
    with monkeypatch.context() as patch:
        patch.setattr(broken._runner, "forward", _break)
        with pytest.raises(ZeroDivisionError):
            broken.ask("Hi", max_new_tokens=2)
        with pytest.raises(ZeroDivisionError):
            broken.generate([request(0, (), 2), request(1, (), 2)])
    assert read(broken.submit(request(0, (0,), 6))).token_ids == generated(name_of(engine), 0, (0,), 6)
    assert broken.statistics().num_failed == 3
    broken.close()


def _break(_: object) -> torch.Tensor:
    raise ZeroDivisionError


def test_interrupted_reading_gives_up_the_others(engine: TorchEngine) -> None:
    fresh = TorchEngine(engine.loaded)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fresh.generate([request(0, (), 1), request(1, (), 1500), request(2, (), 1500)], on_answer=interrupt)
    deadline = time.monotonic() + 5
    while fresh.statistics().num_cancelled < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fresh.statistics().num_cancelled == 2
    fresh.close()
