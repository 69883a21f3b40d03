"""How long the workers of a controller may be silent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from llava.serve.dispatch import Dispatcher, DispatchOptions
from llava.serve.frames import KEEP_ALIVE_S
from llava.serve.protocol import GenerateRequest, WorkerStatus
from llava.serve.registry import Registry, RegistryOptions
from tests.serve.network import TOKEN, run


@pytest.mark.parametrize(
    ("expiry_s", "instance", "expected_s"),
    [(30, "one", 30), (1.5, "one", 2 * KEEP_ALIVE_S), (300, "one", 60), (1.5, "", 60)],
    ids=["as its heartbeats", "two signs of life", "not for ever", "the original's gives no sign"],
)
def test_a_worker_may_be_silent_in_an_answer_for_as_long_as(
    expiry_s: float, instance: str, expected_s: float
) -> None:
    patience: list[float] = []

    async def one_frame() -> AsyncIterator[bytes]:
        yield b'{"text": "p", "error_code": 0}\0'

    def answer(request: httpx.Request) -> httpx.Response:
        patience.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, content=one_frame())

    async def main() -> None:
        registry = Registry(RegistryOptions(expiry_s=expiry_s))
        registry.register("http://w:1", WorkerStatus(("m",), instance=instance), check_heart_beat=True)
        dispatcher = Dispatcher(registry, DispatchOptions(token=TOKEN), transport=httpx.MockTransport(answer))
        request = GenerateRequest("p", model="m")
        async for _ in dispatcher.frames(request, b"{}", request_id="r", num_hops=0):
            pass
        await dispatcher.close()

    run(main())
    assert patience == [expected_s]
