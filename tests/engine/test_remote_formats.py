"""Response formats of the remote engine: what the endpoint is sent, and whose fault its refusals are."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from llava.engine.request import JsonFormat
from llava.errors import RemoteError, RequestError
from tests.engine.endpoints import GOOD, Script, engine_of, stream_of
from tests.engine.formats import FORMAT, SCHEMA


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (JsonFormat(), {"type": "json_object"}),
        (FORMAT, {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}),
        (
            JsonFormat('{"not": {}}', name="mine", is_strict=False),
            {"type": "json_schema", "json_schema": {"name": "mine", "schema": {"not": {}}, "strict": False}},
        ),
    ],
    ids=["object", "schema", "strict"],
)
def test_a_response_format_is_passed_on_as_it_is(wanted: JsonFormat, sent: dict[str, Any]) -> None:
    script = Script(stream_of(*GOOD))
    with engine_of(script) as engine:
        assert engine.has_formats
        engine.ask("What?", response_format=wanted)
        engine.ask("What?")
    assert script.bodies[0]["response_format"] == sent
    assert "response_format" not in script.bodies[1]


@pytest.mark.parametrize("status", [400, 422])
def test_a_response_format_that_the_endpoint_refuses_is_the_askers_fault(status: int) -> None:
    said = {"error": {"message": "Failed to convert the JSON Schema: no keyword 'not'; key sesame"}}
    with (
        engine_of(Script(httpx.Response(status, json=said)), api_key="sesame") as engine,
        pytest.raises(RequestError, match=r"refuses the response format: .*no keyword 'not'; key \*\*\*"),
    ):
        engine.ask("What?", response_format=FORMAT)


def test_what_else_the_endpoint_refuses_stays_its_own_error() -> None:
    said = {"error": {"message": "too many tokens"}}
    with engine_of(Script(httpx.Response(400, json=said))) as engine, pytest.raises(RemoteError):
        engine.ask("What?", response_format=FORMAT)
