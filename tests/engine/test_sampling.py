"""The next token: greedy, filtered, penalised, repeatable."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llava.engine.request import Request, SamplingParams, Timing
from llava.engine.sampling import TokenSampler, filtered_probabilities
from llava.errors import ConfigError, UsageError
from llava.templates import PICTURE

LOGITS = torch.tensor([0.0, 3.0, 2.0, -1.0, 2.5])
NO_PROMPT = torch.tensor([-200, -200])


def sampler(prompt: torch.Tensor = NO_PROMPT, **params: Any) -> TokenSampler:
    return TokenSampler(SamplingParams(**params), prompt)


def test_greedy_takes_the_likeliest() -> None:
    assert sampler().choose(LOGITS) == 1
    assert sampler().is_plain_argmax


def test_the_same_seed_gives_the_same_tokens() -> None:
    first, second = sampler(temperature=1.0, seed=7), sampler(temperature=1.0, seed=7)
    assert [first.choose(LOGITS) for _ in range(20)] == [second.choose(LOGITS) for _ in range(20)]


def test_without_a_seed_runs_differ() -> None:
    first, second = sampler(temperature=5.0), sampler(temperature=5.0)
    assert [first.choose(LOGITS) for _ in range(60)] != [second.choose(LOGITS) for _ in range(60)]


def test_top_k_leaves_k_tokens() -> None:
    probabilities = filtered_probabilities(LOGITS, SamplingParams(temperature=1.0, top_k=2))
    assert probabilities.nonzero().flatten().tolist() == [1, 4]


def test_top_p_leaves_the_smallest_set_that_reaches_it() -> None:
    full = LOGITS.softmax(-1)
    probabilities = filtered_probabilities(
        LOGITS, SamplingParams(temperature=1.0, top_p=float(full[1]) + 0.01)
    )
    assert probabilities.nonzero().flatten().tolist() == [1, 4]
    only_best = filtered_probabilities(LOGITS, SamplingParams(temperature=1.0, top_p=0.01))
    assert only_best.nonzero().flatten().tolist() == [1]


def test_filters_agree_with_transformers() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    for _ in range(50):
        scores = torch.randn(1, 64) * 3
        params = SamplingParams(temperature=0.7, top_k=20, top_p=0.8)
        expected = scores
        for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
            expected = warper(torch.empty(1, 0), expected)
        torch.testing.assert_close(filtered_probabilities(scores[0], params), expected.softmax(-1)[0])


def test_the_repetition_penalty_covers_prompt_and_answer_but_not_pictures() -> None:
    penalised = sampler(torch.tensor([-200, 1]), repetition_penalty=2.0)
    assert not penalised.is_plain_argmax
    assert penalised.choose(LOGITS) == 4  # 3.0 / 2 < 2.5
    assert penalised.choose(LOGITS) == 2  # now 2.5 / 2 as well


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
        ("max_new_tokens", True),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", "###"),
        ("stop", ("",)),
        ("stop", ("a",) * 10_000),
    ],
)
def test_a_number_out_of_bounds_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="stop" if field == "stop" else field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_a_request_is_either_turns_or_a_prompt() -> None:
    with pytest.raises(UsageError):
        Request()
    with pytest.raises(UsageError):
        Request(prompt="a", turns=Request.of_question("b").turns)


def test_a_question_puts_its_pictures_first() -> None:
    (turn,) = Request.of_question("Compare.", images=["a.png", "b.png"]).turns
    assert turn.content == (PICTURE, "\n", PICTURE, "\n", "Compare.")


def test_the_decoding_rate_leaves_out_the_first_token() -> None:
    assert Timing(first_token_s=1.0, total_s=3.0).tokens_per_second(5) == 2.0
    assert Timing(first_token_s=1.0, total_s=1.0).tokens_per_second(1) == 0.0


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9, 100.0])
@pytest.mark.parametrize("top_p", [1e-300, 0.5, 1.0])
def test_no_number_within_bounds_makes_sampling_fail(temperature: float, top_p: float) -> None:
    scores = torch.tensor([30.0, -40.0, 29.0, -torch.inf])
    probabilities = filtered_probabilities(scores, SamplingParams(temperature=temperature, top_p=top_p))
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.argmax() == 0
    assert probabilities[3] == 0
