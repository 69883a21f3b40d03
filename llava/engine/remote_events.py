"""The events of an OpenAI-compatible chat stream; any part of one may be missing or nonsense."""

from __future__ import annotations

import json
from typing import Any

from llava.engine.http_engine import Delta
from llava.engine.http_faults import Fault, message_of
from llava.engine.pushed_stream import Counts
from llava.engine.request import Choice, FinishReason, TokenLogprob

_DONE = "[DONE]"
_REASONS: dict[str, FinishReason] = {"stop": "stop", "eos": "stop", "length": "length"}
UNKNOWN_TOKEN = -1
"""The id of a token where the server does not tell it."""


def read_chat_event(data: str) -> Delta:
    """Return what an event adds; raises Fault when it is an error or cannot be understood."""
    if data.strip() == _DONE:
        return Delta(is_last=True)
    event = json_object(data)
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise nonsense(data)
    delta = choice.get("delta") or {}
    text = delta.get("content") if isinstance(delta, dict) else None
    if not isinstance(text, str | None):
        raise nonsense(data)
    logprobs = _logprobs(choice.get("logprobs"), data)
    return Delta(
        text=text or "",
        num_tokens=len(logprobs) or int(bool(text)),
        logprobs=logprobs,
        finish_reason=_reason(choice.get("finish_reason")),
        counts=_counts(event.get("usage")),
    )


def json_object(data: str) -> dict[str, Any]:
    """Return an event's JSON object; raises Fault when it is none, or reports an error."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise nonsense(data) from None
    if not isinstance(event, dict):
        raise nonsense(data)
    # Some servers send the error's fields without the word "error" around them.
    if event.get("error") or event.get("object") == "error":
        raise Fault("fails in the middle of an answer", "Look into the server's log.", said=message_of(data))
    return event


def nonsense(data: str) -> Fault:
    """Return the fault of an event that cannot be understood."""
    return Fault(
        "sends an event that cannot be understood",
        "Check that the URL is that of an OpenAI-compatible API.",
        said=data,
    )


def count_of(value: object) -> int | None:
    """Return a number of tokens, None for anything else."""
    return value if type(value) is int and value >= 0 else None


def _reason(reason: object) -> FinishReason | None:
    if reason is None:
        return None
    if not isinstance(reason, str) or reason not in _REASONS:
        raise Fault(
            "ends the answer for a reason of its own",
            "See what the server says about it.",
            said=str(reason),
        )
    return _REASONS[reason]


def _counts(usage: object) -> Counts | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    return Counts(
        num_prompt_tokens=count_of(usage.get("prompt_tokens")),
        num_new_tokens=count_of(usage.get("completion_tokens")),
        num_cached_tokens=count_of(details.get("cached_tokens")) if isinstance(details, dict) else None,
    )


def _logprobs(found: object, data: str) -> tuple[TokenLogprob, ...]:
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, list):
        return ()
    return read_logprobs(content, data)


def read_logprobs(tokens: list[Any], data: str) -> tuple[TokenLogprob, ...]:
    """Read a list of tokens with their log-probabilities; raises Fault for nonsense."""
    try:
        return tuple(
            TokenLogprob(_choice(token), tuple(_choice(other) for other in token.get("top_logprobs") or ()))
            for token in tokens
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise nonsense(data) from None


def _choice(token: Any) -> Choice:
    token_id = count_of(token.get("id"))
    return Choice(
        UNKNOWN_TOKEN if token_id is None else token_id, str(token["token"]), float(token["logprob"])
    )
