"""What the log file of a server says of requests: enough to find each, and nothing that a client sent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from llava.errors import CheckpointError, LlavaError, NotFoundError, ReportedError, WorkerLostError
from llava.log_file import LogFile
from llava.serve.http.access import Access
from llava.serve.http.errors import log_error
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.request_log import plain
from llava.serve.http.stack import new_app, protect
from tests.serve.servers import live, raw, read_all

NAME = "req-of-this-test"
SECRET = "what-nobody-keeps"


@pytest.fixture
def app() -> FastAPI:
    app = new_app()

    @app.post("/ask/{name}")
    def ask(name: str) -> str:
        return name

    @app.get("/fail")
    def fail() -> None:
        raise CheckpointError("/srv/model has no config.json", remedy="Look there.")

    @app.get("/bug")
    def bug() -> None:
        raise KeyError("a bug")

    @app.get("/missing")
    def missing() -> None:
        raise NotFoundError(f"there is no model {SECRET!r}")

    @app.get("/broken")
    def broken() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise KeyError("a bug")

        return StreamingResponse(pieces())

    return app


@pytest.fixture
def lines(app: FastAPI, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that sends a request as it stands, and returns what the file says of it."""

    def lines_of(*heads: str) -> list[str]:
        path = tmp_path / "controller.log"
        layered = protect(app, Access(), limits=Limits(), lifecycle=Lifecycle("ready"))
        with LogFile(path), live(layered) as client:
            for head in heads:
                with raw(client) as connection:
                    end = f" HTTP/1.1\r\nhost: localhost\r\nx-request-id: {NAME}\r\nconnection: close\r\n\r\n"
                    connection.sendall((head + end).encode())
                    read_all(connection)
        found = path.read_text(encoding="utf-8")
        assert SECRET not in found
        assert "127.0.0.1" not in found
        return found.splitlines()

    return lines_of


def told(lines: list[str]) -> list[str]:
    """Return the messages about requests, with times of 0 ms."""
    return [re.sub(r"\d+ ms", "0 ms", line.split(" | ", 3)[3]) for line in lines if NAME in line]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (f"POST /ask/x?q={SECRET}", f"POST /ask/x 200 0 ms request {NAME}"),
        (f"POST /ask/file={SECRET}", f"POST /ask/file... 200 0 ms request {NAME}"),
        (f"POST /ask/a%0Ab%20|%20{SECRET}", f"POST /ask/a... 200 0 ms request {NAME}"),
        (f"GET!{SECRET} /ask/x", f"GET... /ask/x 405 0 ms request {NAME}"),
        ("GET /health", f"GET /health 200 0 ms request {NAME}"),
        ("GET /ready", f"GET /ready 200 0 ms request {NAME}"),
    ],
)
def test_a_request_is_a_line_without_what_was_sent(
    lines: Callable[..., list[str]], head: str, message: str
) -> None:
    assert told(lines(head))[-1] == message


def test_an_error_that_a_client_was_told_is_found_by_its_request(lines: Callable[..., list[str]]) -> None:
    assert told(lines("GET /missing")) == [
        f"request {NAME}: error[not-found]",
        f"GET /missing 404 0 ms request {NAME}",
    ]


def test_an_error_that_a_client_was_not_told_is_there_in_full(lines: Callable[..., list[str]]) -> None:
    found = lines("GET /fail", "GET /bug")
    assert told(found) == [
        f"request {NAME}: /srv/model has no config.json. Look there.",
        f"GET /fail 500 0 ms request {NAME}",
        f"request {NAME} failed",
        f"request {NAME}: error[internal]",
        f"GET /bug 500 0 ms request {NAME}",
    ]
    assert "KeyError: 'a bug'" in found


def test_an_answer_that_broke_off_is_said_to(lines: Callable[..., list[str]]) -> None:
    found = told(lines("GET /broken"))
    assert found[-2].startswith(f"request {NAME} broke off: The server failed")
    assert found[-1] == f"GET /broken 200 broken off 0 ms request {NAME}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotFoundError(SECRET), "error[not-found]"),
        (ReportedError(SECRET, reported_code="context-length"), "error[context-length]"),
        (WorkerLostError("The worker cannot be reached"), "The worker cannot be reached"),
        (CheckpointError("no config.json"), "no config.json"),
    ],
)
def test_the_terminal_gets_the_words_and_the_file_what_is_not_the_clients(
    error: LlavaError, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "controller.log"
    with LogFile(path):
        log_error(error, NAME)
    assert told(path.read_text(encoding="utf-8").splitlines()) == [f"request {NAME}: {message}"]
    assert f"request {NAME}: {error}" in caplog.messages


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_ends_no_answer(app: FastAPI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "controller.log"
    path.symlink_to("/dev/full")
    layered = protect(app, Access(), limits=Limits(), lifecycle=Lifecycle("ready"))
    with LogFile(path), live(layered) as client:
        assert [client.post("/ask/x").status_code for _ in range(50)] == [200] * 50
    assert capsys.readouterr().err.count("cannot be written, and serving goes on") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [("/v1/models/a.b-c", "/v1/models/a.b-c"), ("", ""), ("\u00e9", "..."), ("/" * 300, "/" * 100 + "...")],
)
def test_a_path_is_shown_as_far_as_it_is_plain(text: str, shown: str) -> None:
    assert plain(text) == shown
