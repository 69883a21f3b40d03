"""The response made of frames: what comes together goes together, and a slow client slows its source."""

from __future__ import annotations

import asyncio
from typing import Any

from llava.serve.frames import FrameOptions, FrameResponse, Frames
from tests.serve.network import run, until

SCOPE: dict[str, Any] = {"type": "http", "headers": []}


async def never() -> Any:
    """The client stays."""
    await asyncio.Event().wait()


def test_frames_that_come_together_are_sent_together() -> None:
    async def source() -> Frames:
        for number in range(10):
            yield b"%d\0" % number

    async def main() -> list[bytes]:
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b"head"))

        await FrameResponse(source())(SCOPE, never, send)
        return sent

    assert run(main()) == [b"head", b"".join(b"%d\0" % number for number in range(10)), b""]


def test_a_client_that_does_not_read_stops_its_source() -> None:
    async def main() -> None:
        num_taken, is_closed, reads = 0, False, asyncio.Event()
        total = 0

        async def source() -> Frames:
            nonlocal num_taken, is_closed
            try:
                for _ in range(1000):
                    num_taken += 1
                    yield b"x\0"
                    await asyncio.sleep(0)
            finally:
                is_closed = True

        async def send(message: Any) -> None:
            nonlocal total
            await reads.wait()
            total += len(message.get("body", b""))

        answering = asyncio.ensure_future(FrameResponse(source())(SCOPE, never, send))
        await asyncio.sleep(0.1)
        assert num_taken < 200
        reads.set()
        await answering
        assert (num_taken, total, is_closed) == (1000, 2000, True)

    run(main())


def test_silence_is_bridged_and_an_early_error_has_its_own_status() -> None:
    async def slow() -> Frames:
        await asyncio.sleep(0.1)
        yield b"late\0"
        raise ValueError("unexpected")

    async def early(*, has_frames: bool = False) -> Frames:
        if has_frames:
            yield b""
        raise ValueError("unexpected")

    async def main(frames: Frames) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await FrameResponse(frames, FrameOptions(0.02, 0.02))(SCOPE, never, send)
        return sent

    head, *bodies = run(main(slow()))
    data = b"".join(message["body"] for message in bodies)
    assert head["status"] == 200
    assert data.startswith(b"\0\0")
    assert b"late\0" in data
    assert b'"code": "internal"' in data
    assert b"ValueError" not in data
    head, *bodies = run(main(early()))
    assert head["status"] == 500
    assert b'"code": "internal"' in bodies[0]["body"]


def test_a_client_that_leaves_closes_the_source() -> None:
    async def main() -> None:
        is_closed = False

        async def source() -> Frames:
            nonlocal is_closed
            try:
                await asyncio.sleep(60)
                yield b""
            finally:
                is_closed = True

        leaves = asyncio.Event()

        async def receive() -> Any:
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            return

        answering = asyncio.ensure_future(FrameResponse(source())(SCOPE, receive, send))
        await asyncio.sleep(0.05)
        leaves.set()
        assert await until(answering.done) < 1
        assert is_closed

    run(main())
