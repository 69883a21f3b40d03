"""The processes of bench.soak: started, killed, frozen, ended, and watched for memory and descriptors."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

ROOT = Path(__file__).parents[1]
START_S = 120.0
EXPIRY_S, HEART_BEAT_S = 1.5, 0.3
"""Short ones, so that a fault is short too."""
MODEL = "tiny"


class Sample(NamedTuple):
    """What a process held at a moment."""

    num_requests: int
    """That all clients had ended by then."""
    pid: int
    resident_bytes: int
    num_descriptors: int


@dataclass
class Server:
    """A server of ours, which may be started again and again under one name and port."""

    name: str
    arguments: Sequence[str]
    ready: str
    """What it says once it takes requests."""
    folder: Path
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._num_starts = 0

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def said(self) -> str:
        """Everything that the running process has said."""
        return self._log.read_text()

    def start(self, *, num_threads: int = 1) -> None:
        """Start the process; `wait_until_ready` waits for it."""
        self._num_starts += 1
        self._log = self.folder / f"{self.name}-{self._num_starts}.log"
        environment = os.environ | {
            "LLAVA_TOKEN_FILE": str(self.folder / "token"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(num_threads),
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        """Return once it takes requests; raises RuntimeError where it does not come to that."""
        deadline = time.monotonic() + START_S
        while re.search(self.ready, self.said) is None:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self.name} did not start: {self.said}")
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def exit_code(self, within_s: float) -> int | None:
        """Return its exit code, None where it still runs after that time."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(within_s)
        return None

    def sample(self, num_requests: int) -> None:
        """Note memory and descriptors."""
        with suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            resident, descriptors = process.memory_info().rss, process.num_fds()
            self.samples.append(Sample(num_requests, process.pid, resident, descriptors))

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()


class Place:
    """A folder with a token of its own, and in it a controller, two workers and `llava serve`."""

    def __init__(self, folder: Path, engine: str) -> None:
        """Choose the ports; `start` starts everything."""
        ports = free_ports(4)
        self.folder = folder
        self.controller_url, *self.worker_urls = (f"http://localhost:{port}" for port in ports[:3])
        self.serve_url = f"http://127.0.0.1:{ports[3]}"
        self.controller = Server(
            "controller",
            [
                *("-m", "llava.serve.controller", f"--port={ports[0]}"),
                f"--heart-beat-expiration={EXPIRY_S}",
            ],
            "controller ready at",
            folder,
        )
        self.workers = [
            Server(
                f"worker {index + 1}",
                [
                    *("-m", "llava.serve.model_worker", f"--engine={engine}", "--device=cpu"),
                    *("--controller", self.controller_url, f"--port={port}", f"--model-name={MODEL}"),
                    f"--heart-beat-interval={HEART_BEAT_S}",
                ],
                "registered at",
                folder,
            )
            for index, port in enumerate(ports[1:3])
        ]
        self.serve = Server(
            "llava serve",
            ["-m", "llava.cli", "serve", f"--port={ports[3]}", f"--engine={engine}", "--device=cpu"],
            re.escape(self.serve_url),
            folder,
        )

    @property
    def servers(self) -> list[Server]:
        """All of them."""
        return [self.controller, *self.workers, self.serve]

    def start(self) -> None:
        """Start everything, in order."""
        self.controller.start()
        self.controller.wait_until_ready()
        for server in (*self.workers, self.serve):
            server.start()
        for server in (*self.workers, self.serve):
            server.wait_until_ready()

    @property
    def token(self) -> str:
        """The token that controller and workers share."""
        return (self.folder / "token").read_text().strip()

    def registered(self) -> list[str]:
        """Return the addresses of the workers that the controller knows; none where it does not answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            response = httpx.post(
                f"{self.controller_url}/list_workers", headers=headers, timeout=5, trust_env=False
            )
        except httpx.HTTPError:
            return []
        return sorted(worker["address"] for worker in response.json()["workers"])

    def wait_for_workers(self, num: int, within_s: float = START_S) -> float:
        """Return after how many seconds the controller knows so many workers; raises RuntimeError."""
        begin = time.monotonic()
        while len(self.registered()) != num:
            if time.monotonic() - begin > within_s:
                raise RuntimeError(f"the controller knows {self.registered()} after {within_s:g} s")
            time.sleep(0.05)
        return time.monotonic() - begin

    def close(self) -> None:
        """End everything."""
        for server in self.servers:
            server.close()


class Drift(NamedTuple):
    """How memory and descriptors of a process went over the measured part of a run."""

    first_bytes: float
    last_bytes: float
    first_descriptors: int
    last_descriptors: int
    num_requests: int

    @property
    def share(self) -> float:
        """By how much the memory changed, as a share."""
        return self.last_bytes / self.first_bytes - 1


def drift_of(server: Server, since: int) -> Drift:
    """Compare the first with the last fifth of what was seen after so many requests.

    Medians of the memory, and the fewest descriptors: load and faults open more for a while, a leak for good.
    """
    samples = [
        sample
        for sample in server.samples
        if sample.num_requests >= since and sample.pid == server.samples[-1].pid
    ]
    part = max(1, len(samples) // 5)
    first, last = samples[:part], samples[-part:]
    return Drift(
        statistics.median(sample.resident_bytes for sample in first),
        statistics.median(sample.resident_bytes for sample in last),
        min(sample.num_descriptors for sample in first),
        min(sample.num_descriptors for sample in last),
        samples[-1].num_requests - samples[0].num_requests,
    )


def free_ports(num: int) -> list[int]:
    """Return ports that are free now, all different."""
    listeners = [socket.socket() for _ in range(num)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
