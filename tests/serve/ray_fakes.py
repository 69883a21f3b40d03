"""Ray Serve's handle of replicas, without a cluster: it gives what a script says."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from llava.engine.model_options import ModelOptions
from llava.engine.request import Answer, Choice, Request, Timing, TokenLogprob

LOGPROB = TokenLogprob(Choice(9, "A dog.", -0.5), (Choice(9, "A dog.", -0.5), Choice(3, "A cat.", -2.0)))
ANSWER = Answer(
    "A dog.", "stop", 7, 3, Timing(0.5, 1.5, image_s=0.25), num_cached_tokens=2, logprobs=(LOGPROB,)
)
Script = Callable[[Request], AsyncIterator[Any]]


class FakeItems:
    """One request's items; where it is cancelled, its script is."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items
        self.is_cancelled = threading.Event()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items

    def cancel(self) -> None:
        self.is_cancelled.set()


class FakeHandle:
    """Replicas that answer by a script, or whose description is an error."""

    def __init__(self, script: Script | None = None, *, description: Any = None) -> None:
        from llava.serve.ray_replica import Description

        self._script = script or (lambda _: sent(ANSWER.text, ANSWER))
        self._description = description or Description(
            "echo", "vicuna_v1", ("It is small.",), True, ModelOptions(bits=4)
        )
        self.calls: list[tuple[Request, str]] = []
        self.given: list[FakeItems] = []

    @property
    def describe(self) -> FakeHandle.Describe:
        return FakeHandle.Describe(self)

    def options(self, *, method_name: str, stream: bool) -> FakeHandle:
        assert (method_name, stream) == ("answer", True)
        return self

    def remote(self, request: Request, affinity: str) -> FakeItems:
        self.calls.append((request, affinity))
        self.given.append(FakeItems(self._script(request)))
        return self.given[-1]

    class Describe:
        def __init__(self, owner: FakeHandle) -> None:
            self._owner = owner

        def remote(self) -> FakeHandle.Describe:
            return self

        def result(self, *, timeout_s: float | None) -> Any:
            assert timeout_s
            if isinstance(self._owner._description, Exception):
                raise self._owner._description
            return self._owner._description


async def sent(*items: Any, then: Exception | None = None) -> AsyncIterator[Any]:
    """Give items, and then raise."""
    for item in items:
        yield item
    if then is not None:
        raise then
