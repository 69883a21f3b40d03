"""Fields and numbers of a body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llava.engine.request import JsonFormat, SamplingParams
from llava.errors import ConfigError, RequestError
from llava.serve.openai.body import WITHOUT_EFFECT, ChatBody, read_body


def body_of(**fields: Any) -> ChatBody:
    return read_body({"messages": [{"role": "user", "content": "Hi"}], **fields})


def test_every_field_reaches_the_engine() -> None:
    body = body_of(
        temperature=0.5, top_p=0.9, top_k=40, repetition_penalty=1.1, max_tokens=7, stop=["a", "b"], seed=3,
        logprobs=True, top_logprobs=2, n=2,
    )  # fmt: skip
    assert body.num_choices == 2
    assert body.sampling() == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=40, repetition_penalty=1.1, max_new_tokens=7, stop=("a", "b"),
        seed=3, logprobs=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0),
        ({}, "temperature", 0.2),
        ({"temperature": None}, "temperature", 0.2),
        ({"num_beams": 3}, "temperature", 0),
        ({"num_beams": 3}, "num_beams", 3),
        ({"temperature": 1e-300}, "temperature", 0),
        ({"temperature": 1, "top_p": 1e-300}, "temperature", 0),
        ({"top_p": 0.01}, "temperature", 0.2),
        ({}, "max_new_tokens", 1024),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_new_tokens", 6),
        ({"stop": "END"}, "stop", ("END",)),
        ({"stop": None}, "stop", ()),
        ({"top_k": -1}, "top_k", 0),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
    ],
)
def test_defaults_and_spellings(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(body_of(**fields).sampling(), name) == value


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"max_tokens": 1.5},
        {"max_tokens": "5"},
        {"max_completion_tokens": 10**30},
        {"temperature": -0.1},
        {"temperature": 101},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1 << 40},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 11},
        {"n": 0},
        {"n": 17},
        {"n": 10**9},
        {"num_beams": -1},
        {"num_beams": 0},
        {"num_beams": 99},
        {"num_beams": 2, "temperature": 1},
        {"stop": ["x"] * 10_000},
        {"stop": [""]},
        {"stop": ""},
        {"stop": "x" * 257},
        {"stop": ["x" * 257]},
        {"stop": [5]},
        {"seed": -1},
        {"seed": 1 << 63},
        {"seed": 1 << 200},
        {"seed": 1.0},
        {"logprobs": 5},
        {"top_logprobs": 5},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"stream": "yes"},
        {"stream_options": 5},
        {"model": 5},
        {"messages": []},
        {"messages": None},
        {"messages": "Hi"},
        {"messages": [5]},
        {"messages": [{"role": "user", "content": "x"}] * 10_001},
        {"response_format": 5},
        {"response_format": {}},
        {"response_format": {"type": "regex"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a\n", "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x" * 65, "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"x": "y" * 50_000}},
            }
        },
        {"response_format": {"type": "json_object"}, "num_beams": 2},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_numbers_out_of_bounds_and_wrong_types_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((RequestError, ConfigError)) as caught:
        body_of(**fields).sampling()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("body", [None, [], "x", 5, {}])
def test_what_is_no_body_is_refused(body: object) -> None:
    with pytest.raises(RequestError):
        read_body(body)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_field_that_would_change_the_answer_is_refused_unless_it_asks_for_nothing(name: str) -> None:
    for harmless in WITHOUT_EFFECT[name]:
        body_of(**{name: harmless})
    with pytest.raises(RequestError, match=f"{name} cannot be carried out"):
        body_of(**{name: {"something": 1}})


def test_a_response_format_is_a_part_of_sampling() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    named = {"name": "mine-1", "schema": schema, "strict": True, "description": "passed over"}
    wanted = body_of(response_format={"type": "json_schema", "json_schema": named}).sampling().response_format
    assert wanted == JsonFormat(json.dumps(schema), name="mine-1", is_strict=True)
    assert body_of(response_format={"type": "json_object"}).sampling().response_format == JsonFormat()
    for nothing in ({"type": "text"}, None):
        assert body_of(response_format=nothing).sampling().response_format is None


def test_fields_that_change_nothing_are_passed_over() -> None:
    body_of(user="me", metadata={"a": "b"}, store=False, service_tier="auto", something_new=[1])
    body_of(response_format={"type": "text"})
