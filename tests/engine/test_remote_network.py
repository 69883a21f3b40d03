"""The remote engine against a server of this machine that misbehaves on its socket."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from llava.engine.http_engine import HttpEngine
from llava.engine.request import Request
from llava.errors import EngineError, RemoteError
from tests.engine.endpoints import GOOD, HEAD, chunk, engine_at, raw_server, sse

FIRST = sse([chunk("Two")])


def wait_until_idle(engine: HttpEngine) -> None:
    deadline = time.monotonic() + 5
    while engine.statistics().num_running and time.monotonic() < deadline:
        time.sleep(0.005)


def test_bytes_may_be_cut_anywhere() -> None:
    text = sse([chunk("caf\u00e9 "), chunk("\u8336"), chunk(reason="stop")]).replace(
        b"\\u00e9", "\u00e9".encode()
    )

    def dribble(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD)
        for index in range(0, len(text), 7):
            connection.sendall(text[index : index + 7])
            time.sleep(0.0005)

    with raw_server(dribble) as server, engine_at(server.url) as engine:
        assert engine.ask("What?") == "caf\u00e9 \u8336"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (HEAD + FIRST + b'data: {"choices"', "cannot be understood|breaks off"),
        (HEAD + b"\x00\xff\xfe garbage \r\n\r\n" * 20, "without a finish reason"),
        (HEAD + b"data: " + b"x" * (5 << 20), "more than 4194304 bytes"),
        (
            HEAD.replace(b"close\r\n", b"close\r\nContent-Length: 9999\r\n") + FIRST,
            "breaks off in the middle",
        ),
    ],
)
def test_nonsense_is_an_error(sent: bytes, message: str) -> None:
    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(sent)

    with raw_server(behave) as server, engine_at(server.url) as engine:
        with pytest.raises(RemoteError, match=message):
            engine.ask("What?")
        assert server.num_requests == 1


def test_a_connection_that_ends_before_an_answer_is_tried_again() -> None:
    def behave(connection: socket.socket, _: bytes) -> None:
        if server.num_requests > 2:
            connection.sendall(HEAD + sse(GOOD))

    with raw_server(behave) as server, engine_at(server.url) as engine:
        assert engine.ask("What?") == "Two dogs"
        assert server.num_requests == 3


def test_not_http_at_all_is_an_error() -> None:
    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"220 mail.example ESMTP\r\n")

    with (
        raw_server(behave) as server,
        engine_at(server.url, num_retries=1) as engine,
        pytest.raises(RemoteError, match=r"before it answers \(tried 2 times\)"),
    ):
        engine.ask("What?")


@pytest.mark.parametrize(
    ("sent", "options"),
    [
        (b"", {"first_token_timeout_s": 0.1}),
        (HEAD, {"first_token_timeout_s": 0.1}),
        (HEAD + FIRST, {"token_timeout_s": 0.1}),
    ],
)
def test_silence_is_an_error_after_its_time(sent: bytes, options: dict[str, float]) -> None:
    done = threading.Event()

    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(sent)
        done.wait(5)

    with raw_server(behave) as server, engine_at(server.url, **options) as engine:
        try:
            with pytest.raises(RemoteError, match=r"silent: nothing came for 0\.1 s"):
                engine.ask("What?")
        finally:
            done.set()


def test_comments_do_not_keep_a_silent_server_alive() -> None:
    done = threading.Event()

    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD)
        while not done.wait(0.02):
            connection.sendall(b": ping\n\n")

    with raw_server(behave) as server, engine_at(server.url, first_token_timeout_s=0.15) as engine:
        try:
            with pytest.raises(RemoteError, match="silent"):
                engine.ask("What?")
        finally:
            done.set()


def test_cancelling_closes_the_connection() -> None:
    gone = threading.Event()

    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + FIRST)
        if connection.recv(1) == b"":  # the client closes
            gone.set()

    with raw_server(behave) as server, engine_at(server.url) as engine:
        stream = engine.stream("What?")
        assert next(iter(stream)) == "Two"
        stream.cancel()
        stream.cancel()
        assert (stream.answer.text, stream.answer.finish_reason) == ("Two", "cancelled")
        assert gone.wait(5)
        assert list(stream) == []
        wait_until_idle(engine)
        assert (engine.statistics().num_cancelled, engine.statistics().num_running) == (1, 0)


def test_a_reader_that_stops_reading_cancels() -> None:
    gone = threading.Event()

    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + FIRST)
        if connection.recv(1) == b"":
            gone.set()

    with raw_server(behave) as server, engine_at(server.url) as engine:
        for _piece in engine.stream("What?"):
            break
        assert gone.wait(5)


def test_closing_the_engine_ends_what_runs() -> None:
    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + FIRST)
        connection.recv(1)

    with raw_server(behave) as server, engine_at(server.url) as engine:
        stream = engine.stream("What?")
        pieces = iter(stream)
        assert next(pieces) == "Two"
        engine.close()
        with pytest.raises(EngineError, match="closed before the answer"):
            next(pieces)


def test_no_more_run_at_once_than_the_option_says() -> None:
    def behave(connection: socket.socket, _: bytes) -> None:
        time.sleep(0.02)
        connection.sendall(HEAD + sse(GOOD))

    with raw_server(behave) as server, engine_at(server.url, max_concurrency=2) as engine:
        answers = engine.generate([Request.of_question("What?")] * 8, batch_size=6)
        assert [answer.text for answer in answers] == ["Two dogs"] * 8
        assert server.most_open == 2
        assert max(answer.timing.queued_s for answer in answers) > 0.015


def test_several_answers_to_one_request_have_seeds_of_their_own() -> None:
    seeds: list[int] = []

    def behave(connection: socket.socket, body: bytes) -> None:
        seeds.append(json.loads(body)["seed"])
        connection.sendall(HEAD + sse(GOOD))

    with raw_server(behave) as server, engine_at(server.url) as engine:
        request = Request.of_question("What?")
        request = Request(turns=request.turns, sampling=type(request.sampling)(temperature=1, seed=5))
        streams = engine.choices(request, 3)
        assert [stream.answer.text if list(stream) else "" for stream in streams] == ["Two dogs"] * 3
    assert sorted(seeds) == [5, 6, 7]


def test_nobody_at_the_address_is_an_error_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        pytest.raises(RemoteError, match=r"cannot be reached.*Is it running"),
        engine_at(f"http://127.0.0.1:{port}", num_retries=0),
    ):
        pass
