"""The engine on the tiny checkpoints: alone or in any batch, streamed or not, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llava
from llava.engine.frontend import MAX_IMAGES_PER_REQUEST
from llava.engine.request import Request, SamplingParams
from llava.engine.torch_engine import TorchEngine
from llava.errors import ContextLengthError, ImageError, ImageLimitError, PlaceholderError
from llava.templates import PICTURE, Turn

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
IMAGES = [str(FIXTURES / "images" / f"{number}.png") for number in range(4)]


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return llava.load(FIXTURES / "llava-a-clip-mlp2x", device="cpu", dtype="float32")


def requests() -> list[Request]:
    greedy = SamplingParams(max_new_tokens=12)
    return [
        Request.of_question("What is shown?", IMAGES[:1], greedy),
        Request.of_question("Who are you?", (), SamplingParams(max_new_tokens=5)),
        Request.of_question("Compare the two pictures, please.", IMAGES[1:3], greedy),
        Request(prompt="USER: Look at <image>, then answer. ASSISTANT:", images=IMAGES[3:], sampling=greedy),
    ]


@pytest.fixture(scope="module")
def answers_alone(engine: TorchEngine) -> list[str]:
    return [engine.generate([request])[0].text for request in requests()]


def test_an_answer_equals_that_of_transformers_generate(engine: TorchEngine) -> None:
    batch = engine.processor("USER: <image>\nWhat is it? ASSISTANT:", images=IMAGES[:1])
    generated = engine.model.generate(**batch, max_new_tokens=20, do_sample=False)
    new_ids = generated[0, -20:] if generated.shape[1] > 20 else generated[0]
    request = Request(
        prompt="USER: <image>\nWhat is it? ASSISTANT:",
        images=IMAGES[:1],
        sampling=SamplingParams(max_new_tokens=20),
    )
    expected = engine.tokenizer.decode(new_ids, skip_special_tokens=True).strip()
    assert engine.generate([request])[0].text == expected


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 3), min_size=1, max_size=4), batch_size=st.integers(1, 3))
def test_answers_do_not_depend_on_the_batch(
    engine: TorchEngine, answers_alone: list[str], order: list[int], batch_size: int
) -> None:
    chosen = [requests()[index] for index in order]
    texts = [answer.text for answer in engine.generate(chosen, batch_size=batch_size)]
    assert texts == [answers_alone[index] for index in order]


def test_answers_are_reported_once_each_as_they_finish(engine: TorchEngine) -> None:
    seen: list[int] = []
    answers = engine.generate(requests(), on_answer=lambda index, _: seen.append(index))
    assert sorted(seen) == [0, 1, 2, 3]
    assert answers[1].num_new_tokens <= 5
    assert answers[1].finish_reason in ("stop", "length")


def test_a_stream_adds_up_to_its_answer(engine: TorchEngine) -> None:
    stream = engine.stream("What is shown?", IMAGES[:1], max_new_tokens=12)
    text = "".join(stream)
    assert text.strip() == stream.answer.text
    assert stream.answer.num_prompt_tokens > 16
    assert 0 < stream.answer.timing.first_token_s <= stream.answer.timing.total_s


def test_a_cancelled_stream_keeps_what_was_said(engine: TorchEngine) -> None:
    stream = engine.stream("What is shown?", IMAGES[:1], max_new_tokens=200)
    pieces: Iterator[str] = iter(stream)
    first = next(pieces)
    stream.cancel()
    assert stream.answer.finish_reason == "cancelled"
    assert stream.answer.text.startswith(first.strip())
    assert stream.answer.num_new_tokens < 200


def test_a_stop_string_ends_the_answer_and_stays_out_of_it(engine: TorchEngine) -> None:
    whole = engine.ask("What is shown?", IMAGES[:1], max_new_tokens=30)
    mark = whole[len(whole) // 2 : len(whole) // 2 + 2]
    stream = engine.stream("What is shown?", IMAGES[:1], max_new_tokens=30, stop=(mark,))
    assert "".join(stream).strip() == whole[: whole.find(mark)].strip()
    assert stream.answer.finish_reason == "stop"


def test_sampling_repeats_with_its_seed(engine: TorchEngine) -> None:
    def sample(seed: int) -> str:
        return engine.ask("Tell me.", IMAGES[:1], temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=16)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_the_processor_gives_the_arguments_of_a_model_call(engine: TorchEngine) -> None:
    turns = [Turn("user", (PICTURE, "\n", "What is it?"))]
    batch = engine.processor(turns, images=IMAGES[:1])
    num_features = engine.processor.num_image_tokens
    assert int((batch["input_ids"] == -200).sum()) == num_features
    assert batch["pixel_values"].dtype == torch.float32
    assert engine.model(**batch).logits.shape[:2] == batch["input_ids"].shape
    assert "pixel_values" not in engine.processor("USER: hello ASSISTANT:")


def test_placeholders_and_pictures_must_agree(engine: TorchEngine) -> None:
    with pytest.raises(PlaceholderError, match=r"1 <image> placeholder.* 2 picture"):
        engine.generate([Request(prompt="USER: <image> ASSISTANT:", images=IMAGES[:2])])
    with pytest.raises(PlaceholderError):
        engine.processor("USER: hello ASSISTANT:", images=IMAGES[:1])


def test_a_placeholder_typed_by_the_user_is_text(engine: TorchEngine) -> None:
    assert isinstance(engine.ask("What does <image> or </s> mean?", max_new_tokens=4), str)


def test_too_many_pictures_and_too_long_prompts_are_refused(engine: TorchEngine) -> None:
    with pytest.raises(ImageLimitError):
        engine.ask("Compare.", IMAGES[:1] * (MAX_IMAGES_PER_REQUEST + 1))
    with pytest.raises(ContextLengthError, match="context"):
        engine.ask("word " * 5000)


def test_a_missing_picture_is_an_error_before_anything_is_decoded(engine: TorchEngine) -> None:
    with pytest.raises(ImageError):
        engine.stream("What?", ["/nowhere/at-all.png"])


def test_an_answer_ends_where_the_context_does(engine: TorchEngine) -> None:
    stream = engine.stream("word " * 400, max_new_tokens=100_000, temperature=1.0, seed=3)
    list(stream)
    total = stream.answer.num_prompt_tokens + stream.answer.num_new_tokens
    assert total <= engine.loaded.context_length
