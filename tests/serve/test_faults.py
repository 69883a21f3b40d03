"""Faults that attacks do not cover: failing engines, half connections, models that vanish."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

import llava
from llava.demo import embedded_model_path
from llava.engine.request import Request
from llava.errors import EngineError
from llava.serve.application import ServeOptions
from llava.serve.http.limits import Limits
from llava.serve.openai.messages import PromptLimits
from llava.serve.openai.pictures import PictureLimits
from llava.serve.request_queue import QueueOptions
from llava.serve.selftest.corpus import noise, saved
from llava.serve.selftest.target import data_url
from tests.serve.engines import EchoEngine, endless
from tests.serve.servers import ask, raw, read_all, read_until, serving, wait_until


def fails(_: Request) -> Iterator[str]:
    yield "half "
    raise EngineError("out of memory")


def test_a_thousand_failures_cost_no_place_no_picture_no_thread_and_no_file() -> None:
    engine = EchoEngine()
    # Room for the pictures of 8 requests: one that stayed behind would soon be one too many.
    limits = PromptLimits(PictureLimits(max_held_pixels=8 * 40 * 30))
    picture = {"type": "image_url", "image_url": {"url": data_url(saved(noise(40, 30)))}}
    with serving(engine, ServeOptions(prompt=limits), queue=QueueOptions(max_running=4)) as client:

        def fail(number: int) -> str:
            response = ask(client, [picture, {"type": "text", "text": "Hi"}], stream=number % 2 == 0)
            return f"{response.status_code} {'engine' in response.text}"

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: ask(client).status_code, range(20))) == {200}
            num_threads, num_files = threading.active_count(), psutil.Process().num_fds()
            engine.pieces = fails
            answers = set(pool.map(fail, range(1000)))
        assert answers == {"200 True", "503 True"}
        metrics = client.get("/metrics").text
        assert 'llava_running{model="echo"} 0.0' in metrics
        assert 'llava_waiting{model="echo"} 0.0' in metrics
        assert threading.active_count() <= num_threads
        assert psutil.Process().num_fds() <= num_files + 2
        engine.pieces = EchoEngine().pieces
        assert ask(client, [picture]).status_code == 200


def test_half_open_connections_cost_nothing_after_a_while() -> None:
    engine = EchoEngine(endless())
    with serving(engine, ServeOptions(limits=Limits(keep_alive_s=1, header_timeout_s=1))) as client:
        with raw(client) as silent, raw(client) as idle, raw(client) as half:
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            read_until(idle, b"}")
            half.sendall(request("Hello", is_stream=True))
            read_until(half, b"word")
            half.shutdown(socket.SHUT_WR)
            assert wait_until(lambda: engine.ends == ["cancelled"], timeout_s=3) < 1
            # Neither of the two ever closes.
            assert read_all(silent) == b""
            assert read_all(idle) == b""
        wait_until(lambda: 'llava_running{model="echo"} 0.0' in client.get("/metrics").text)


def request(text: str, *, is_stream: bool = False) -> bytes:
    """Return a question as bytes."""
    message = {"role": "user", "content": text}
    body = json.dumps(
        {"model": "echo", "messages": [message], "stream": is_stream, "max_tokens": 5000}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


@pytest.mark.skipif(os.name != "posix", reason="open files cannot be removed")
def test_a_model_whose_files_are_removed_answers_on_and_is_not_found_by_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava.cli import main

    folder = tmp_path / "vanishing"
    shutil.copytree(embedded_model_path(), folder)
    engine = llava.load(str(folder), engine="torch", device="cpu")
    picture = {"type": "image_url", "image_url": {"url": data_url(saved(noise(40, 30)))}}

    def answer(client: httpx.Client) -> str:
        response = ask(client, [picture, {"type": "text", "text": "Hi"}], temperature=0, max_tokens=4)
        return str(response.json()["choices"][0]["message"])

    with serving(engine) as client:
        before = answer(client)
        shutil.rmtree(folder)
        assert answer(client) == before
    assert main(["serve", "--port", "0", "--no-page", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "vanishing" in said
    assert said.startswith("error[")
