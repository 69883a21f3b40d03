"""The clients of bench.soak: what they ask of the controller and of the API, and how each request ended."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import httpx

import llava
from bench.soak_processes import MODEL, Place
from llava.demo import example_images
from llava.engine.protocol import read
from llava.engine.request import Request, SamplingParams
from llava.errors import RemoteError, ReportedError
from llava.serve.client import AsyncServingClient, ClientOptions
from llava.serve.protocol import GenerateRequest
from llava.templates import PICTURE, Turn, get_template

ANSWER, CANCELLED, WRONG = "answer", "cancelled", "wrong text"
BROKEN = "broken off"
"""No answer and no code: the connection broke, or what came is no error of ours."""
NUM_TOKENS = 64
LONG_SEEDS = (1, 2)
"""Of hot answers that go on as long as they may."""
PICTURE_QUESTIONS = (
    "How many objects are there?",
    "Describe the picture.",
    "What is in the center?",
    "Is there a red circle?",
)
QUESTIONS = ("Hello", "Who are you?", "How many objects are there?", "Thank you")
PATIENCE_S = 60.0


class Ended(NamedTuple):
    """A request that has come to an end."""

    kind: str
    begin: float
    end: float
    outcome: str
    """ANSWER, CANCELLED, WRONG, BROKEN and why, or the code of an error."""
    expected: frozenset[str]
    """Outcomes that are right without a fault."""


@dataclass(frozen=True)
class Task:
    """A dialogue, and the answer that it has at temperature 0."""

    turns: tuple[Turn, ...]
    picture: bytes | None
    expected: str

    def as_prompt(self, **fields: Any) -> GenerateRequest:
        """Return it as the workers' protocol has it."""
        spans = get_template("vicuna_v1").render(self.turns, add_generation_prompt=True)
        given: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": NUM_TOKENS, **fields}
        images = () if self.picture is None else (base64.b64encode(self.picture).decode(),)
        return GenerateRequest("".join(span.text for span in spans), model=MODEL, images=images, **given)

    def as_messages(self) -> list[dict[str, Any]]:
        """Return it as the API has it."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            parts: list[dict[str, Any]] = [
                {"type": "text", "text": part.strip("\n")}
                for part in turn.content
                if isinstance(part, str) and part != "\n"
            ]
            if any(not isinstance(part, str) for part in turn.content):
                assert self.picture is not None, "a turn shows a picture that is not there"
                address = "data:image/png;base64," + base64.b64encode(self.picture).decode()
                parts.insert(0, {"type": "image_url", "image_url": {"url": address}})
            messages.append({"role": turn.role, "content": parts})
        return messages


def make_tasks() -> list[Task]:
    """Return chats with and without pictures, of one and two questions; an engine in this process answers."""
    engine = llava.load(engine="torch", device="cpu")
    tasks: list[Task] = []

    def answered(turns: tuple[Turn, ...], picture: bytes | None) -> str:
        images = [] if picture is None else [picture]
        sampling = SamplingParams(max_new_tokens=NUM_TOKENS)
        text = read(engine.submit(Request(turns=turns, images=images, sampling=sampling))).text
        tasks.append(Task(turns, picture, text))
        return text

    try:
        for question in QUESTIONS:
            answered((Turn("user", (question,)),), None)
        for path in example_images():
            picture = path.read_bytes()
            for question, following in pairwise(PICTURE_QUESTIONS):
                first = (Turn("user", (PICTURE, "\n", question)),)
                said = answered(first, picture)
                answered((*first, Turn("assistant", (said,)), Turn("user", (following,))), picture)
    finally:
        engine.close()
    return tasks


class Clients:
    """Asks as many kinds of things as there are, and keeps how each ended."""

    def __init__(self, place: Place, tasks: list[Task], seed: int) -> None:
        """To be used within one event loop."""
        self.place = place
        self.ended: list[Ended] = []
        self._tasks = tasks
        self._chance = random.Random(seed)
        self._workers = AsyncServingClient(place.controller_url, options=ClientOptions(silence_s=PATIENCE_S))
        self._api = httpx.AsyncClient(
            base_url=place.serve_url,
            timeout=httpx.Timeout(PATIENCE_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            trust_env=False,
        )
        self._kinds: list[tuple[str, int, Callable[[], Awaitable[str]], frozenset[str]]] = [
            ("worker, chat", 24, self._worker_chat, frozenset({ANSWER})),
            ("worker, long", 3, self._worker_long, frozenset({ANSWER})),
            ("worker, slow reader", 3, self._worker_slow, frozenset({ANSWER})),
            ("worker, cancelled", 5, self._worker_cancel, frozenset({CANCELLED})),
            ("worker, bad", 5, self._worker_bad, frozenset({"request", "not-found", "image", "placeholder"})),
            ("API, chat", 15, self._api_chat, frozenset({ANSWER})),
            ("API, stream", 12, self._api_stream, frozenset({ANSWER})),
            ("API, slow reader", 3, self._api_slow, frozenset({ANSWER})),
            ("API, cancelled", 5, self._api_cancel, frozenset({CANCELLED})),
            ("API, bad", 5, self._api_bad, frozenset({"request", "config", "not-found", "image"})),
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._workers.close()
        await self._api.aclose()

    async def run(self, num_requests: int, num_clients: int) -> None:
        """Ask until so many requests have ended, those of faults included."""

        async def client() -> None:
            weights = [weight for _, weight, _, _ in self._kinds]
            while len(self.ended) < num_requests:
                kind, _, ask, expected = self._chance.choices(self._kinds, weights)[0]
                await self.note(kind, ask, expected)

        await asyncio.gather(*(client() for _ in range(num_clients)))

    async def note(self, kind: str, ask: Callable[[], Awaitable[str]], expected: frozenset[str]) -> str:
        """Ask, and keep how it ended."""
        begin = time.monotonic()
        outcome = await ending(ask)
        self.ended.append(Ended(kind, begin, time.monotonic(), outcome, expected))
        return outcome

    async def flood(self, num_connections: int) -> None:
        """Open so many connections at once, half to the controller and half to the API, and ask on each."""
        busy = frozenset({ANSWER, "server-busy"})
        workers = AsyncServingClient(self.place.controller_url, options=ClientOptions(timeout_s=PATIENCE_S))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self.place.serve_url, timeout=PATIENCE_S, limits=limits, trust_env=False
        ) as api:
            await asyncio.gather(
                *(
                    self.note("flood", lambda: self._api_chat(api), busy)
                    if index % 2
                    else self.note("flood", lambda: self._worker_chat(workers), busy)
                    for index in range(num_connections)
                )
            )
        await workers.close()

    def _task(self) -> Task:
        return self._chance.choice(self._tasks)

    async def _worker_chat(self, client: AsyncServingClient | None = None) -> str:
        task = self._task()
        pieces = [piece async for piece in self._pieces(task.as_prompt(), client)]
        return judged("".join(pieces), task)

    async def _worker_long(self) -> str:
        return await self.worker_long_at(None)

    async def worker_long_at(self, address: str | None) -> str:
        """Ask for a hot answer of many tokens, of one worker if wished."""
        request = self._long()
        async with aclosing(self._workers.stream(request, address=address)) as messages:
            async for _ in messages:
                pass
        return ANSWER

    def _long(self) -> GenerateRequest:
        hot = {"temperature": 100.0, "seed": self._chance.choice(LONG_SEEDS), "max_new_tokens": 300}
        return Task((Turn("user", ("hello",)),), None, "").as_prompt(**hot)

    async def _worker_slow(self) -> str:
        task = self._task()
        text = ""
        async for piece in self._pieces(task.as_prompt()):
            text += piece
            await asyncio.sleep(0.05)
        return judged(text, task)

    async def _worker_cancel(self) -> str:
        async for _ in self._pieces(self._long()):
            return CANCELLED
        return ANSWER

    async def _pieces(
        self, request: GenerateRequest, client: AsyncServingClient | None = None
    ) -> AsyncIterator[str]:
        async with aclosing((client or self._workers).stream(request)) as messages:
            async for message in messages:
                yield message.delta or ""

    async def _worker_bad(self) -> str:
        good = self._task().as_prompt().to_json()
        bads: list[Any] = [
            {**good, "prompt": 3},
            {**good, "temperature": "hot"},
            {**good, "model": "nobody"},
            {**good, "images": ["bm8gcGljdHVyZQ=="], "prompt": "USER: <image>\n? ASSISTANT:"},
            {**good, "images": [], "prompt": "USER: <image>\n? ASSISTANT:"},
            [good],
        ]
        async with self._api.stream(
            "POST", f"{self.place.controller_url}/worker_generate_stream", json=self._chance.choice(bads)
        ) as response:
            data = await response.aread()
        frame = json.loads(data.strip(b"\0").split(b"\0")[-1])
        return str(frame["code"] if "code" in frame else frame["error"]["code"])

    async def _api_chat(self, client: httpx.AsyncClient | None = None) -> str:
        task = self._task()
        response = await (client or self._api).post("/v1/chat/completions", json=self._body(task))
        found = response.json()
        if response.status_code != 200:
            return str(found["error"]["code"])
        return judged(found["choices"][0]["message"]["content"], task)

    async def _api_stream(self, pause_s: float = 0.0) -> str:
        task = self._task()
        text = ""
        async for event in self._events(self._body(task)):
            if "error" in event:
                return str(event["error"]["code"])
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            await asyncio.sleep(pause_s)
        return judged(text, task)

    async def _api_slow(self) -> str:
        return await self._api_stream(0.05)

    async def _api_cancel(self) -> str:
        async for event in self._events(self._long_body()):
            return str(event["error"]["code"]) if "error" in event else CANCELLED
        return ANSWER

    async def api_long(self) -> str:
        """Ask the API for a hot answer of many tokens."""
        async for event in self._events(self._long_body()):
            if "error" in event:
                return str(event["error"]["code"])
        return ANSWER

    def _long_body(self) -> dict[str, Any]:
        hot = {"temperature": 100.0, "seed": self._chance.choice(LONG_SEEDS), "max_tokens": 300}
        return {"messages": [{"role": "user", "content": "hello"}], **hot}

    async def _api_bad(self) -> str:
        good = self._body(self._task())
        broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,bm8gcGljdHVyZQ=="}}]
        bads: list[Any] = [
            {**good, "messages": []},
            {**good, "temperature": 1000},
            {**good, "model": "nobody"},
            {**good, "messages": [{"role": "user", "content": broken}]},
            {**good, "tools": [{}]},
            [good],
        ]
        response = await self._api.post("/v1/chat/completions", json=self._chance.choice(bads))
        return str(response.json()["error"]["code"])

    def _body(self, task: Task) -> dict[str, Any]:
        return {"messages": task.as_messages(), "temperature": 0, "max_tokens": NUM_TOKENS}

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._api.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}
        ) as response:
            if response.status_code != 200:
                yield json.loads(await response.aread())
                return
            is_complete = False
            async for line in response.aiter_lines():
                is_complete |= line == "data: [DONE]"
                if line.startswith("data: {"):
                    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    is_complete |= "error" in event
                    yield event
            if not is_complete:
                raise RemoteError("the stream broke off", remedy="")


async def ending(ask: Callable[[], Awaitable[str]]) -> str:
    """Return how a request ended, whatever that was."""
    try:
        return await ask()
    except ReportedError as error:
        return str(error.code)
    except (RemoteError, httpx.HTTPError, ValueError, LookupError) as error:
        return f"{BROKEN}: {type(error).__name__} {str(error)[:100]}"


def judged(text: str, task: Task) -> str:
    """Return ANSWER for the text that was expected."""
    return ANSWER if text == task.expected else f"{WRONG}: {text!r} and not {task.expected!r}"
