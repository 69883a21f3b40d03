"""The selftest against the real thing: `llava serve` with its page, a controller and a worker, with a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava.cli import main
from llava.serve.http.running import wait_until_ready
from llava.serve.selftest.running import NAMES

ROOT = Path(__file__).parents[3]
KEY = "the-key-of-this-deployment"
CLIENT_TIMEOUT_S = 1.5

pytestmark = pytest.mark.skipif(os.name != "posix", reason="private files")


class Deployment:
    """Processes that share a folder with key and token."""

    def __init__(self, folder: Path, *limits: str) -> None:
        self.key_file, self.token_file = folder / "key", folder / "token"
        self._folder, self._limits = folder, limits
        self._processes: list[subprocess.Popen[str]] = []
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(KEY)
        own = ["--api-key-file", str(self.key_file)]
        self.controller = _address_in(self._start("llava.serve.controller", "--port=0", *own))
        # The worker loads its model while the server loads its own.
        self._start("llava.serve.model_worker", "--port=0", "--engine=torch", "--controller", self.controller)
        served = self._start("llava.cli", "serve", "--port=0", "--engine=torch", "--device=cpu", *own)
        self.url = _address_in(served)

    def _start(self, module: str, *words: str) -> Path:
        """Start a process; returns where it logs, among other things the address at which it listens."""
        log = self._folder / f"{len(self._processes)}.log"
        environment = os.environ | {
            "LLAVA_TOKEN_FILE": str(self.token_file), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", module, *words, *self._limits]
        with log.open("w") as said:
            self._processes.append(
                subprocess.Popen(
                    command, cwd=self._folder, env=environment, stdout=said, stderr=said, text=True
                )
            )
        return log

    def wait(self) -> None:
        """Return when everything answers."""
        wait_until_ready(self.url)
        deadline = time.monotonic() + 60
        headers = {"Authorization": f"Bearer {KEY}"}
        while not httpx.post(f"{self.controller}/list_models", json={}, headers=headers).json()["models"]:
            assert time.monotonic() < deadline, "no worker registered"
            time.sleep(0.1)

    def options(self) -> list[str]:
        return [
            "selftest", "--attack", self.url, "--key-file", str(self.key_file),
            "--controller", self.controller, "--token-file", str(self.token_file),
        ]  # fmt: skip

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def _address_in(log: Path) -> str:
    import re

    deadline = time.monotonic() + 60
    while (found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text())) is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return found[0]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("attacked"), f"--client-timeout-s={CLIENT_TIMEOUT_S}")
    try:
        made.wait()
        yield made
    finally:
        made.close()


def failures(outcomes: Any) -> list[Any]:
    return [
        (outcome["name"], trial["what"], trial["seen"])
        for outcome in outcomes
        for trial in outcome["trials"]
        if not trial["is_ok"]
    ]


def test_a_whole_deployment_stands_all_23_attacks(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*deployment.options(), "--patience-s", "10", "--json"])
    outcomes = json.loads(capsys.readouterr().out)
    assert failures(outcomes) == []
    assert [(outcome["name"], outcome["verdict"]) for outcome in outcomes] == [
        (name, "pass") for name in NAMES
    ]
    assert code == 0


def test_a_limit_that_does_not_hold_fails_the_command(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    # Less patience than the server's own limit: the slow clients are still connected.
    code = main([*deployment.options(), "--patience-s", "0.5", "--only", "a4,A12"])
    printed = capsys.readouterr().out.splitlines()
    assert code == 1
    assert [line.split()[0] for line in printed[1:3]] == ["A4", "A12"]
    assert "FAIL" in printed[1]
    assert "still open after 0.5 s" in printed[1]
    assert "pass" in printed[2]
    assert printed[-1] == "1 pass, 1 FAIL"


def test_without_its_key_nothing_is_attacked(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", "--attack", deployment.url]) == 2
    assert "asks for a key" in capsys.readouterr().err


@pytest.mark.slow
def test_the_limits_that_servers_have_unless_told_otherwise_stand_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Deployment(tmp_path)
    try:
        made.wait()
        code = main([*made.options(), "--json", "--only", "A4,A10"])
    finally:
        made.close()
    assert failures(json.loads(capsys.readouterr().out)) == []
    assert code == 0
