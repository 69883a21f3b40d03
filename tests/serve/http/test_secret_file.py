"""The shared token in its private file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava.errors import AuthenticationError, FileError
from llava.serve.http.secret_file import (
    TOKEN_FILE_VARIABLE,
    check_token,
    read_or_create,
    read_secret,
    shared_token,
    token_file,
    token_headers,
)

on_posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")


def test_the_place_is_the_options_the_variables_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(TOKEN_FILE_VARIABLE, raising=False)
    assert token_file() == tmp_path / "llava" / "token"
    monkeypatch.setenv(TOKEN_FILE_VARIABLE, str(tmp_path / "variable"))
    assert token_file() == tmp_path / "variable"
    assert token_file(tmp_path / "option") == tmp_path / "option"


@on_posix
def test_the_first_process_draws_the_token_into_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "llava" / "token"
    token = shared_token(path)
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    assert shared_token(path) == token
    assert [item.name for item in path.parent.iterdir()] == ["token"]


def test_threads_that_begin_at_once_get_one_token(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    found: set[str] = set()

    def begin() -> None:
        barrier.wait()
        found.add(read_or_create(tmp_path / "token"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    code = "from llava.serve.http.secret_file import shared_token; print(shared_token())"
    env = {**os.environ, TOKEN_FILE_VARIABLE: str(tmp_path / "token")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shared_token(tmp_path / "token")


@on_posix
def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    shared_token(path)
    path.chmod(0o640)
    with pytest.raises(FileError, match="others can read it") as caught:
        shared_token(path)
    assert caught.value.remedy == f"Run: chmod 600 {path}"


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 40, b"a token\nof two lines and more", b"x" * 5000]
)
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(FileError, match="holds no secret"):
        read_secret(path)


def test_a_place_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        read_or_create(tmp_path / "file" / "token")
    with pytest.raises(FileError, match="cannot be read"):
        read_secret(tmp_path / "nothing")


def test_a_token_proves_itself() -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in token_headers("the-token").items()]
    check_token({"headers": headers}, "the-token")
    with pytest.raises(AuthenticationError):
        check_token({"headers": headers}, "another")
    with pytest.raises(AuthenticationError):
        check_token({"headers": []}, "the-token")
