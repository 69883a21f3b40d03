"""Answers in OpenAI's words: a whole completion, and the chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.engine.request import Answer, Choice, TokenLogprob


@dataclass(frozen=True, slots=True)
class Completion:
    """What all parts of one completion have in common."""

    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return a completion of one or several choices."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": _logprobs(answer),
                "finish_reason": _finish_reason(answer),
            }
            for index, answer in enumerate(answers)
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage_of(answers),
            "timing": _timing(answers[0]),
        }

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk with a piece of a choice's text."""
        return self._chunk(index, {"content": text})

    def opening(self, index: int) -> dict[str, Any]:
        """Return the chunk that begins a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def ending(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return the chunk that ends a choice, with the log-probabilities of all its tokens."""
        return self._chunk(index, {}, finish_reason=_finish_reason(answer), logprobs=_logprobs(answer))

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the chunk with the counts, which has no choices."""
        return {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": usage_of(answers),
            "timing": _timing(answers[0]),
        }

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, str],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": dict(delta),
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


class Trimmer:
    """Leaves out white space before and after a streamed answer, as a whole one has none."""

    def __init__(self) -> None:
        self._has_begun = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Return what can be shown; white space waits for what comes after it."""
        text = self._held + piece
        if not self._has_begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._has_begun = self._has_begun or bool(shown)
        return shown


def usage_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Count tokens: those of the prompt once, those of every choice."""
    num_prompt_tokens = answers[0].num_prompt_tokens
    num_new_tokens = sum(answer.num_new_tokens for answer in answers)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_new_tokens,
        "total_tokens": num_prompt_tokens + num_new_tokens,
        "prompt_tokens_details": {"cached_tokens": answers[0].num_cached_tokens},
    }


def _finish_reason(answer: Answer) -> str:
    """Return OpenAI's word; an answer that the server cancelled was cut short."""
    return "stop" if answer.finish_reason == "stop" else "length"


def _timing(answer: Answer) -> dict[str, float]:
    timing = answer.timing
    return {
        "queued_s": round(timing.queued_s, 6),
        "image_s": round(timing.image_s, 6),
        "first_token_s": round(timing.first_token_s, 6),
        "total_s": round(timing.total_s, 6),
        "tokens_per_second": round(timing.tokens_per_second(answer.num_new_tokens), 3),
    }


def _logprobs(answer: Answer) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    return {"content": [_token(token) for token in answer.logprobs], "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {**_choice(token.chosen), "top_logprobs": [_choice(choice) for choice in token.top]}


def _choice(choice: Choice) -> dict[str, Any]:
    # JSON knows no infinity; OpenAI's floor for what is as good as impossible.
    logprob = max(choice.logprob, -9999.0)
    data = choice.text.encode("utf-8", "replace")
    return {"token": data.decode("utf-8"), "logprob": logprob, "bytes": list(data)}
