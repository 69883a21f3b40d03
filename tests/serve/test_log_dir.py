"""`--log-dir`: the files that the original's commands write, as real processes."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llava.cli import main
from llava.errors import ReportedError
from llava.serve import controller, gradio_web_server, model_worker
from llava.serve.protocol import GenerateRequest
from tests.documents import quiet_process
from tests.serve.test_processes import START_S, Place, Process, free_port, place, until  # noqa: F401

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| [A-Z]+ \| [\w.]+ \| .+")
SECRET = "a-question-that-nobody-keeps"
PICTURE = "a-picture-that-nobody-keeps"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Leave no loggers of a server to other tests."""
    with quiet_process():
        yield


def end(process: Process) -> None:
    process.signal(signal.SIGTERM)
    assert process.exit_code(within_s=20) == 0


def log_of(folder: Path, pattern: str) -> str:
    """Return the one file of a process, which must be private and made of lines, with its end."""
    (path,) = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    assert re.search(r"process \d+ started\n", text)
    assert " | ready\n" in text
    assert re.search(r"process \d+ ended\n$", text)
    assert SECRET not in text
    assert PICTURE not in text
    return text


def test_the_originals_processes_write_their_files_and_a_told_error_is_found_in_each(
    place: Place,  # noqa: F811
) -> None:
    option = ("--log-dir", "logs")
    running, address = place.controller(0, *option)
    port = free_port()
    worker = place.worker(address, port, *option)
    page = place.start(
        "page", "-m", "llava.serve.gradio_web_server", "--controller", address, "--port", "0", *option
    )
    shown = page.wait_for(r"web page ready at (\S+)")
    until(lambda: place.workers(address), within_s=START_S, why=lambda: worker.said)
    with place.client(address) as client:
        request = GenerateRequest(f"USER: {SECRET} ASSISTANT:", model="tiny")
        assert next(client.stream(request)).delta
        too_long = GenerateRequest(f"USER: {SECRET * 100} ASSISTANT:", model="tiny")
        with pytest.raises(ReportedError) as caught:
            list(client.stream(too_long))
    assert (caught.value.code, caught.value.docs) == ("context-length", "docs/errors/context-length.md")
    assert httpx.get(f"{shown}/?q={SECRET}", timeout=30).status_code == 200
    assert httpx.get(f"{shown}/gradio_api/file=/tmp/{PICTURE}.png", timeout=30).status_code >= 400
    for process in (page, worker, running):
        end(process)
    folder = place.folder / "logs"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    name = caught.value.request_id
    at_worker = log_of(folder, r"model_worker_[0-9a-f]{6}\.log")
    assert f"request {name}: error[context-length]\n" in at_worker
    for text in (at_worker, log_of(folder, r"controller\.log")):
        assert re.search(rf"POST /worker_generate_stream \d+ \d+ ms request {name}\n", text)
    assert re.search(
        r"GET /gradio_api/file\.\.\. 4\d\d \d+ ms request", log_of(folder, r"gradio_web_server\.log")
    )
    # At the next start on this port the worker goes on in the same file.
    again = place.worker(address, port, "--no-register", *option)
    again.wait_for(r"logging to logs/model_worker_")
    assert len(list(folder.iterdir())) == 3


def test_llava_serve_writes_its_own(tmp_path: Path) -> None:
    server = Process(
        tmp_path, "serve", "-m", "llava.cli", "serve", "--no-page", "--engine=torch", "--device=cpu",
        "--port=0", "--log-dir=logs",
    )  # fmt: skip
    try:
        address = server.wait_for(r"(http://\S+)")
        body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
        refused = httpx.post(f"{address}/v1/chat/completions", json=body | {"n": 0}, timeout=60)
        end(server)
    finally:
        server.close()
    assert (answer.status_code, refused.status_code) == (200, 400)
    text = log_of(tmp_path / "logs", r"llava_serve\.log")
    for response in (answer, refused):
        name = response.headers["x-request-id"]
        line = rf"POST /v1/chat/completions {response.status_code} \d+ ms request {name}\n"
        assert re.search(line, text)
    assert f"request {refused.json()['error']['request_id']}: error[request]\n" in text


def test_without_the_option_no_file_is_written(place: Place) -> None:  # noqa: F811
    running, _ = place.controller()
    end(running)
    assert "logging to" not in running.said
    assert [
        path.name for path in place.folder.rglob("*.log") if not path.name.startswith("controller-")
    ] == []


@pytest.mark.parametrize("start", [controller.main, model_worker.main, gradio_web_server.main])
def test_a_folder_that_cannot_be_written_is_one_line_and_an_exit_code(
    start: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["--port=0", f"--log-dir={tmp_path / 'file' / 'logs'}"]
    assert callable(start)
    assert start(words) == 2
    said = capsys.readouterr().err
    assert "error[file]" in said
    assert "Give --log-dir a folder that can be written" in said
    assert "Traceback" not in said


def test_llava_serve_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["serve", "--no-page", f"--log-dir={tmp_path / 'file'}"]) == 2
    assert "error[file]" in capsys.readouterr().err
