"""What judging costs: an estimate before the first request, and a cap that no request may break."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from llava.errors import UsageError
from llava.eval.judge.replies import JudgeRequest, Reply

BYTES_PER_TOKEN = 3
"""Of UTF-8, on the safe side: English in OpenAI's vocabularies has a little over 4."""
TOKENS_PER_MESSAGE = 8


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens, in whatever currency. They change, so none are built in."""

    prompt: float
    new: float

    def of(self, num_prompt_tokens: int, num_new_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (num_prompt_tokens * self.prompt + num_new_tokens * self.new) / 1e6


def prompt_tokens(request: JudgeRequest) -> int:
    """Return about how many tokens a request has; counted from its length, rather too many than too few."""
    return sum(
        TOKENS_PER_MESSAGE + math.ceil(len(message["content"].encode()) / BYTES_PER_TOKEN)
        for message in request.messages
    )


class Spending:
    """Counts what is asked of a judge, and what it costs. May be used from several threads."""

    def __init__(self, prices: Prices | None = None, *, cap: float | None = None) -> None:
        """Spend at most `cap`; raises UsageError for a cap without prices."""
        if cap is not None and prices is None:
            raise UsageError(
                "--max-cost needs prices, which change and are not built in",
                remedy="Give --price-in and --price-out, for a million tokens each.",
            )
        self.prices = prices
        self.cap = cap
        self.num_requests = 0
        self.num_prompt_tokens = 0
        self.num_new_tokens = 0
        self._reserved = 0.0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float | None:
        """What was spent so far, None without prices."""
        return None if self.prices is None else self.prices.of(self.num_prompt_tokens, self.num_new_tokens)

    def estimate(self, requests: Iterable[JudgeRequest]) -> str:
        """Say what some requests come to at most; raises UsageError when that is over the cap."""
        requests = list(requests)
        num_prompt = sum(prompt_tokens(request) for request in requests)
        num_new = sum(request.max_tokens for request in requests)
        text = (
            f"{len(requests)} requests to the judge, about {num_prompt} tokens of prompts (counted from "
            f"their length) and at most {num_new} of replies"
        )
        if self.prices is None:
            return f"{text}; give --price-in and --price-out for the cost"
        most = self.prices.of(num_prompt, num_new)
        if self.cap is not None and most > self.cap - (self.cost or 0):
            raise UsageError(
                f"{text}, which may cost {most:.2f}, over --max-cost {self.cap:g}",
                remedy="Raise --max-cost, or have fewer questions judged. Nothing was asked.",
            )
        return f"{text}: at most {most:.2f}"

    def reserve(self, request: JudgeRequest) -> float:
        """Set aside what a request may cost; raises UsageError when that would break the cap."""
        if self.prices is None:
            return 0.0
        most = self.prices.of(prompt_tokens(request), request.max_tokens)
        with self._lock:
            spent = (self.cost or 0.0) + self._reserved
            if self.cap is not None and spent + most > self.cap:
                raise UsageError(
                    f"the next request to the judge may cost {most:.4f}, and {spent:.4f} of --max-cost "
                    f"{self.cap:g} are spent",
                    remedy="Raise --max-cost and run the command again: no reply is paid for twice.",
                )
            self._reserved += most
        return most

    def settle(self, reserved: float, request: JudgeRequest, reply: Reply | None) -> None:
        """Count a request that was carried out (`reply` is None where it failed)."""
        with self._lock:
            self._reserved -= reserved
            if reply is None:
                return
            self.num_requests += 1
            counted = reply.num_prompt_tokens
            self.num_prompt_tokens += prompt_tokens(request) if counted is None else counted
            written = reply.num_new_tokens
            own = math.ceil(len(reply.text.encode()) / BYTES_PER_TOKEN)
            self.num_new_tokens += own if written is None else written
