"""Answers in OpenAI's words."""

from __future__ import annotations

import json
import math
import random

from llava.engine.request import Answer, Choice, Timing, TokenLogprob
from llava.serve.openai.completions import Completion, Trimmer, usage_of

TIMING = Timing(first_token_s=0.5, total_s=1.5, queued_s=0.1, image_s=0.2)


def test_a_trimmed_stream_is_the_stripped_text_however_it_is_cut() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("ab \n\t\u3000") for _ in range(draw.randrange(12)))
        trimmer, shown, start = Trimmer(), "", 0
        while start < len(text):
            end = start + draw.randrange(1, 4)
            shown += trimmer.push(text[start:end])
            start = end
        assert shown == text.strip()


def test_impossible_tokens_and_half_characters_are_json_all_the_same() -> None:
    odd = Choice(5, "\ud83d", -math.inf)
    answer = Answer("x", "stop", 3, 1, TIMING, logprobs=(TokenLogprob(odd, (odd,)),))
    text = json.dumps(Completion("req-1", "m").whole([answer]), allow_nan=False, ensure_ascii=False)
    assert text.encode("utf-8")
    token = json.loads(text)["choices"][0]["logprobs"]["content"][0]
    assert (token["logprob"], token["bytes"]) == (-9999.0, [63])


def test_the_prompt_is_counted_once_and_every_choice() -> None:
    answers = [Answer("x", "stop", 10, num, TIMING, num_cached_tokens=4) for num in (2, 3)]
    assert usage_of(answers) == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_the_times_are_those_of_the_answer() -> None:
    timing = Completion("req-1", "m").whole([Answer("x", "length", 1, 11, TIMING)])["timing"]
    assert timing == {
        "queued_s": 0.1,
        "image_s": 0.2,
        "first_token_s": 0.5,
        "total_s": 1.5,
        "tokens_per_second": 10.0,
    }
