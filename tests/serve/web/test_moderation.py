"""Moderation through a transport of ours; nothing leaves the machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import httpx
import pytest

from llava.errors import ConfigError
from llava.serve.web.moderation import Moderation


def asked(answer: Callable[[httpx.Request], httpx.Response]) -> Moderation:
    return Moderation("key", transport=httpx.MockTransport(answer))


def test_a_text_with_quotes_travels_whole_and_its_flag_comes_back() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"results": [{"flagged": True}]})

    assert asked(answer).is_flagged('say "no" \\ {}')
    assert json.loads(seen[0].content) == {"input": 'say "no" \\ {}'}
    assert seen[0].headers["Authorization"] == "Bearer key"
    assert seen[0].extensions["timeout"]["read"] == 5


@pytest.mark.parametrize("content", [b"{}", b"no", b"[]", b'{"results": []}', b'{"results": [{}]}'])
def test_an_answer_that_cannot_be_read_counts_as_not_flagged_and_is_logged(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not asked(lambda _: httpx.Response(200, content=content)).is_flagged("secret words")
    assert "moderation failed" in caplog.text
    assert "secret words" not in caplog.text


def test_a_refusal_and_a_timeout_count_as_not_flagged(caplog: pytest.LogCaptureFixture) -> None:
    def late(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("late", request=request)

    with caplog.at_level(logging.WARNING):
        assert not asked(late).is_flagged("x")
        assert not asked(lambda _: httpx.Response(401)).is_flagged("x")
    assert "ReadTimeout" in caplog.text
    assert "401" in caplog.text


def test_without_a_key_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        Moderation()
