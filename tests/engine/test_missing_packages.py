"""Optional packages that are not installed are named with the command that installs them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from llava.engine.gguf_facts import read_model
from llava.engine.llama_cpp import LlamaCppEngine, LlamaCppOptions
from llava.engine.remote import RemoteEngine
from llava.errors import DependencyError
from tests.engine.ggufs import CHECKPOINTS, write_language_model


def leave_out(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let imports of `package` fail."""
    genuine = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def test_without_httpx_no_endpoint_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch, "httpx")
    with pytest.raises(DependencyError, match=r"httpx is not installed.*llava\[remote\]"):
        RemoteEngine.connect("http://127.0.0.1:1")


def test_without_gguf_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_language_model(CHECKPOINTS / "llava-a-clip-mlp2x", tmp_path, "F16")
    leave_out(monkeypatch, "gguf")
    with pytest.raises(DependencyError, match=r"gguf is not installed.*llava\[cpu\]"):
        read_model(path)


def test_without_xllamacpp_no_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_model(write_language_model(CHECKPOINTS / "llava-a-clip-mlp2x", tmp_path, "F16"))
    leave_out(monkeypatch, "xllamacpp")
    with pytest.raises(DependencyError, match=r"xllamacpp is not installed.*llava\[cpu\]"):
        LlamaCppEngine(facts, options=LlamaCppOptions(num_threads=1))
