"""The original's serving commands: their options, what they import, and to whom they are open."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.serve import controller, model_worker, register_worker, sglang_worker, test_message
from llava.serve.network_options import add_network_arguments, address_on, network_of


@pytest.mark.parametrize(
    "module",
    [
        "controller", "controller_routes", "register_worker", "test_message", "client", "model_worker",
        "sglang_worker",
    ],
)  # fmt: skip
def test_servers_and_clients_import_no_torch(module: str) -> None:
    code = f"import sys, llava.serve.{module}\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", [controller, model_worker, register_worker, sglang_worker, test_message])
def test_the_originals_options_are_known(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    originals = {
        controller: "--host --port --dispatch-method",
        model_worker: "--host --port --worker-address --worker --controller-address --controller "
        "--model-path --model-base --model-name --device --multi-modal --limit-model-concurrency "
        "--stream-interval --no-register --load-8bit --load-4bit --use-flash-attn",
        register_worker: "--controller-address --worker-name --check-heart-beat",
        sglang_worker: "--host --port --worker-address --controller-address --model-name --sgl-endpoint "
        "--limit-model-concurrency --stream-interval --no-register",
        test_message: "--controller-address --worker-address --model-name --max-new-tokens --message",
    }
    assert module.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [option for option in originals[module].split() if option not in shown] == []
    assert module.main(["--no-such-option"]) == 2


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "http://localhost:7"),
        ("0.0.0.0", "http://localhost:7"),
        ("::", "http://localhost:7"),
        ("10.0.0.5", "http://10.0.0.5:7"),
        ("gpu1", "http://gpu1:7"),
        ("fd00::5", "http://[fd00::5]:7"),
    ],
)
def test_a_worker_says_where_it_can_be_found(host: str, address: str) -> None:
    assert address_on(host, 7) == address


@pytest.mark.parametrize(
    ("host", "options", "is_open"),
    [
        ("localhost", [], True),
        ("0.0.0.0", [], False),
        ("0.0.0.0", ["--allow-anonymous"], True),
        ("localhost", ["--api-key-file", "key"], False),
    ],
)
def test_off_loopback_clients_need_a_key(
    host: str, options: list[str], is_open: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("a-key-of-this-test-that-is-long\n")
    (tmp_path / "key").chmod(0o600)
    parser = argparse.ArgumentParser()
    add_network_arguments(parser, port=1)
    network = network_of(parser.parse_args(["--host", host, "--token-file", "token", *options]))
    assert (not network.access.keys) is is_open
    assert is_open or network.token in network.access.keys
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
