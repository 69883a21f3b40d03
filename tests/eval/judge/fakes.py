"""A judge that does as it is told: a scripted endpoint, in this process or behind a port, and its files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from llava.engine.http_endpoint import HttpOptions
from llava.eval.judge.backends import EndpointBackend
from llava.eval.judge.judge import Judge
from llava.eval.judge.replies import JudgeRequest, ReplyStore
from llava.files import write_jsonl

Body = dict[str, Any]
Say = Callable[[Body, int], httpx.Response | str]
"""From a request's body and its number (from 0) to a reply, or to a response of any kind."""


def completion(text: str | None) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


class Script:
    """Answers each request by `say`, and remembers what was asked."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._lock = threading.Lock()
        self.bodies: list[Body] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        return self.answer(request.content)

    def answer(self, content: bytes) -> httpx.Response:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(json.loads(content))
        said = self._say(self.bodies[number], number)
        return httpx.Response(200, json=completion(said)) if isinstance(said, str) else said


def in_turn(*replies: httpx.Response | str) -> Script:
    """Give the replies in turn, again and again."""

    def say(_: Body, number: int) -> httpx.Response | str:
        reply = replies[number % len(replies)]
        if isinstance(reply, str):
            return reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    return Script(say)


def judge_of(
    script: Callable[[httpx.Request], Any],
    *,
    store: ReplyStore | None = None,
    model: str = "judge",
    **more: Any,
) -> Judge:
    """Return a judge whose bytes go to `script`; waits between attempts are short."""
    http = {name: more.pop(name) for name in ("num_retries", "first_token_timeout_s") if name in more}
    backend = EndpointBackend(
        "http://judge.example/v1",
        api_key="secret-key",
        options=HttpOptions(backoff_s=0.001, **http),
        transport=httpx.MockTransport(script),
    )
    return Judge(model, backend, store or ReplyStore(None), **more)


def request_of(text: str = "Is it?", **more: Any) -> JudgeRequest:
    return JudgeRequest(({"role": "user", "content": text},), 0.2, 16, **more)


@contextmanager
def served(script: Script) -> Iterator[str]:
    """Yield the address of a server on this machine that answers by `script`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            response = script.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(response.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


CATEGORIES = ("conv", "detail", "complex")


def write_bench(folder: Path, num: int = 6) -> dict[str, Path]:
    """Write the files of a small LLaVA-Bench and return them by what they are."""
    questions, contexts, reference, model = [], [], [], []
    for number in range(num):
        image = f"{number // 2:03}.jpg"
        questions.append(
            {
                "question_id": number,
                "image": image,
                "text": f"Question {number}?",
                "category": CATEGORIES[number % 3],
            }
        )
        contexts.append({"id": image, "image": image, "caption": [f"Picture {image}.", "It is small."]})
        reference.append({"question_id": number, "text": f"Reference {number}.", "answer_id": f"r{number}"})
        model.append({"question_id": number, "text": f"Model {number}.", "answer_id": f"m{number}"})
    files = {}
    for name, records in (
        ("questions", questions),
        ("context", contexts[::2]),
        ("reference", reference),
        ("model", model),
    ):
        files[name] = folder / f"{name}.jsonl"
        write_jsonl(files[name], records)
    return files
