"""The original's commands as real processes on this machine: killed, frozen, stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.errors import ReportedError
from llava.serve.client import ServingClient
from llava.serve.protocol import GenerateRequest, StreamMessage
from llava.serve.test_message import main as ask_one_thing

ROOT = Path(__file__).parents[2]
START_S = 60.0
LONG = GenerateRequest(
    "USER: hello ASSISTANT:", model="tiny", max_new_tokens=1500, temperature=1.0, top_p=1.0, seed=1
)
SLOW_WORKER = """\
import sys
from llava.serve import model_worker
from tests.serve.network import WordEngine

engine = WordEngine(["word "] * 100, delay_s=0.04)
model_worker.load_engine = lambda options: engine
model_worker.device_map_of = lambda device: None
sys.exit(model_worker.main())
"""
"""A worker whose answers take four seconds whatever the machine, and which imports no torch."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


class Process:
    """A server of ours, and what it says."""

    def __init__(self, folder: Path, name: str, *command: str) -> None:
        self._log = folder / f"{name}-{time.monotonic_ns()}.log"
        environment = os.environ | {
            "LLAVA_TOKEN_FILE": str(folder / "token"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=environment, stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        """Everything so far."""
        return self._log.read_text()

    def wait_for(self, pattern: str) -> str:
        """Return what the pattern's group matches, as soon as it is said."""
        found = until(lambda: re.search(pattern, self.said), within_s=START_S, why=lambda: self.said)
        return str(found[1] if found.groups() else found[0])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def exit_code(self, *, within_s: float = 10.0) -> int:
        return self._process.wait(within_s)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()


def until(
    condition: Callable[[], Any], *, within_s: float = 10.0, why: Callable[[], str] = lambda: ""
) -> Any:
    """Return what a condition gives, once it gives something."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it never came true: {why()}"
        time.sleep(0.02)
    return found


class Place:
    """A folder with its own token, in which processes run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[Process] = []
        self._slow = folder / "slow_worker.py"
        self._slow.write_text(SLOW_WORKER)

    def controller(self, port: int = 0, *options: str) -> tuple[Process, str]:
        """Start a controller that forgets quickly; returns it and its address."""
        process = self.start(
            "controller",
            "-m",
            "llava.serve.controller",
            f"--port={port}",
            "--heart-beat-expiration=1.5",
            *options,
        )
        return process, process.wait_for(r"controller ready at (\S+)")

    def worker(self, controller: str, port: int, *options: str, is_slow: bool = True) -> Process:
        """Start a worker, which may take a while to be ready."""
        program = [str(self._slow)] if is_slow else ["-m", "llava.serve.model_worker", "--engine=torch"]
        return self.start(
            "worker",
            *program,
            "--controller",
            controller,
            f"--port={port}",
            "--heart-beat-interval=0.3",
            "--model-name=tiny",
            *options,
        )

    def token(self) -> str:
        return (self.folder / "token").read_text().strip()

    def client(self, address: str) -> ServingClient:
        return ServingClient(address, token=self.token())

    def workers(self, controller: str) -> list[str]:
        """Return the addresses that a controller knows."""
        response = httpx.post(
            f"{controller}/list_workers", headers={"Authorization": f"Bearer {self.token()}"}
        )
        return sorted(worker["address"] for worker in response.json()["workers"])

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def start(self, name: str, *command: str) -> Process:
        """Start a Python program, which ends with the place."""
        process = Process(self.folder, name, *command)
        self._processes.append(process)
        return process


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def outcome_of(stream: Iterator[StreamMessage]) -> str:
    """Return the rest of an answer, or what ended it."""
    pieces: list[str] = []
    try:
        pieces += (message.delta or "" for message in stream)
    except ReportedError as error:
        return f"{error.code} {error.error_number}"
    return "".join(pieces)


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_three_commands_work_together_as_the_readme_of_the_original_starts_them(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    controller, address = place.controller()
    worker = place.worker(address, port, "--host=0.0.0.0", f"--worker=http://localhost:{port}", is_slow=False)
    worker.wait_for("registered at")
    assert (place.folder / "token").stat().st_mode & 0o077 == 0
    assert "clients need a key" in worker.said
    monkeypatch.setenv("LLAVA_TOKEN_FILE", str(place.folder / "token"))
    words = ["--controller-address", address, "--model-name=tiny", "--message=hello"]
    assert ask_one_thing(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Models: ['tiny']\nworker_addr: http://localhost:{port}\n")
    assert "ASSISTANT:Hello" in said
    # Off loopback a worker wants the key; the controller on loopback does not.
    body = {"prompt": "p", "stop": "</s>"}
    refused = httpx.post(f"http://localhost:{port}/worker_generate_stream", json=body)
    assert refused.status_code == 401
    assert httpx.post(f"{address}/list_models").json()["models"] == ["tiny"]
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert place.workers(address) == []
    controller.signal(signal.SIGTERM)
    assert controller.exit_code() == 0


def test_a_worker_killed_in_mid_answer_costs_that_answer_and_the_next_goes_elsewhere(place: Place) -> None:
    _, address = place.controller()
    ports = [free_port(), free_port()]
    workers = [place.worker(address, port) for port in ports]
    until(lambda: len(place.workers(address)) == 2, within_s=START_S, why=lambda: workers[0].said)
    with place.client(address) as client:
        doomed, other = client.stream(LONG), client.stream(LONG)
        assert next(doomed).delta
        assert next(other).delta
        workers[0].signal(signal.SIGKILL)
        outcomes = sorted((outcome_of(stream) for stream in (doomed, other)), key=len)
        assert outcomes[0] == "worker-lost 3"
        assert outcomes[1].count("word") > 50
        assert next(client.stream(LONG)).delta
    assert place.workers(address) == [f"http://localhost:{ports[1]}"]


def test_a_frozen_worker_is_removed_and_comes_back_once(place: Place) -> None:
    _, address = place.controller()
    worker = place.worker(address, free_port())
    until(lambda: place.workers(address), within_s=START_S, why=lambda: worker.said)
    worker.signal(signal.SIGSTOP)
    until(lambda: not place.workers(address))
    with place.client(address) as client, pytest.raises(ReportedError) as caught:
        next(client.stream(LONG))
    assert (caught.value.code, caught.value.error_number) == ("not-found", 2)
    worker.signal(signal.SIGCONT)
    until(lambda: place.workers(address))
    assert len(place.workers(address)) == 1


def test_a_worker_frozen_in_mid_answer_ends_that_answer_when_signs_of_life_are_missing(place: Place) -> None:
    _, address = place.controller()
    worker = place.worker(address, free_port())
    until(lambda: place.workers(address), within_s=START_S, why=lambda: worker.said)
    with place.client(address) as client:
        doomed = client.stream(LONG)
        assert next(doomed).delta
        worker.signal(signal.SIGSTOP)
        begin = time.monotonic()
        assert outcome_of(doomed) == "worker-lost 3"
        assert 5 < time.monotonic() - begin < 9  # two signs of life are missing
        assert place.workers(address) == []
        worker.signal(signal.SIGCONT)
        until(lambda: place.workers(address))
        assert next(client.stream(LONG)).delta


def test_a_restarted_controller_hears_of_its_workers_again(place: Place) -> None:
    controller, address = place.controller()
    worker = place.worker(address, free_port())
    until(lambda: place.workers(address), within_s=START_S, why=lambda: worker.said)
    controller.signal(signal.SIGKILL)
    controller.exit_code()
    _, again = place.controller(int(address.rpartition(":")[2]))
    assert again == address
    until(lambda: place.workers(address))


def test_a_signal_drains_and_a_second_one_ends_at_once(place: Place) -> None:
    _, address = place.controller()
    ports = [free_port(), free_port()]
    workers = [place.worker(address, port) for port in ports]
    until(lambda: len(place.workers(address)) == 2, within_s=START_S, why=lambda: workers[0].said)
    with place.client(address) as client:
        streams = [client.stream(LONG, address=f"http://localhost:{port}") for port in ports]
        assert all(next(stream).delta for stream in streams)
        for worker in workers:
            worker.signal(signal.SIGTERM)
        # They leave at once, and new requests are refused, while the old ones go on.
        until(lambda: not place.workers(address))
        with pytest.raises(ReportedError) as caught:
            next(client.stream(LONG, address=f"http://localhost:{ports[0]}"))
        assert caught.value.code == "unavailable"
        workers[1].signal(signal.SIGTERM)
        assert workers[1].exit_code(within_s=2) == 130
        pieces = [message.delta or "" for message in streams[0]]
        assert "".join(pieces).count("word") > 50
        assert workers[0].exit_code() == 0


def test_a_client_that_leaves_frees_the_worker_within_a_second(place: Place) -> None:
    _, address = place.controller()
    port = free_port()
    worker = place.worker(address, port)
    until(lambda: place.workers(address), within_s=START_S, why=lambda: worker.said)
    at_worker = f"http://localhost:{port}"

    def queue_length() -> int:
        return int(httpx.post(f"{at_worker}/worker_get_status").json()["queue_length"])

    for through in (address, at_worker):
        body = json.dumps(LONG.to_json()).encode()
        headers = {"Content-Type": "application/json"}
        with httpx.stream(
            "POST", f"{through}/worker_generate_stream", content=body, headers=headers
        ) as response:
            arriving = response.iter_raw()
            next(arriving)
            assert queue_length() == 1
        begin = time.monotonic()
        until(lambda: queue_length() == 0)
        assert time.monotonic() - begin < 1


def test_what_cannot_be_is_one_line_and_an_exit_code(place: Place) -> None:
    controller, address = place.controller()
    port = address.rpartition(":")[2]
    second = Process(place.folder, "second", "-m", "llava.serve.controller", f"--port={port}")
    assert second.exit_code(within_s=START_S) == 2
    assert f"port {port} of localhost is taken" in second.said
    (place.folder / "token").chmod(0o644)
    open_token = Process(place.folder, "open", "-m", "llava.serve.controller", "--port=0")
    assert open_token.exit_code(within_s=START_S) == 2
    assert "error[file]" in open_token.said
    assert "chmod 600" in open_token.said
    assert "Traceback" not in second.said + open_token.said + controller.said
