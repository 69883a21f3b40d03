"""The check that answers do not depend on company, on engines that do and do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import llava
from llava.engine.protocol import Engine
from llava.engine.request import Answer, Request, SamplingParams
from llava.engine.self_check import check_batch_sizes

REQUESTS = [
    Request.of_question(text, [], SamplingParams(max_new_tokens=6)) for text in ("Hi", "Who?", "Where is it?")
]


def test_float32_answers_alone_as_in_company() -> None:
    engine = llava.load(device="cpu", dtype="float32")
    found = check_batch_sizes(engine, REQUESTS, batch_size=3)
    assert found.changed == ()
    assert found.line() == "0 of 3 answers change between batch sizes 1 and 3"
    engine.close()


def test_an_answer_that_depends_on_company_is_found() -> None:
    engine: Any = llava.load(device="cpu", dtype="float32")
    real = engine.generate

    def generate(requests: list[Request], **options: Any) -> list[Answer]:
        answers: list[Answer] = real(requests, **options)
        if len(requests) > 1:
            answers[1] = replace(answers[1], token_ids=(*answers[1].token_ids, 7))
        return answers

    engine.generate = generate
    assert isinstance(engine, Engine)
    found = check_batch_sizes(engine, REQUESTS, batch_size=3)
    assert found.changed == (1,)
    assert found.share == 1 / 3
    engine.close()
