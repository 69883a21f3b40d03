"""Files: the old one or the new one whatever happens, and a FileError that says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava import files
from llava.errors import FileError


def crash(path: Path) -> None:
    """Fail in the middle of replacing `path`."""
    with files.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("old", ["the old text", None])
def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "answers.json"
    if old is not None:
        path.write_text(old)
    with pytest.raises(RuntimeError):
        crash(path)
    assert (path.read_text() if path.exists() else None) == old
    assert list(tmp_path.iterdir()) == ([path] if old is not None else [])


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text("the old text")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom llava.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "the old text"


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}


def test_a_new_file_has_the_mode_of_a_plain_open(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "new" / "x.txt", "hello")
    finally:
        os.umask(old)
    assert (tmp_path / "new" / "x.txt").stat().st_mode & 0o777 == 0o640


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(JSON, max_size=4))
def test_jsonl_gives_back_what_was_written(tmp_path: Path, records: list[object]) -> None:
    # Lone surrogates have no UTF-8; every other text must survive, line separators in it too.
    records = [record for record in records if is_encodable(record)]
    path = tmp_path / "records.jsonl"
    files.write_jsonl(path, records)
    assert [value for _, value in files.read_jsonl(path)] == records
    path.unlink()
    for record in records:
        files.append_jsonl(path, record)
    assert not records or [value for _, value in files.read_jsonl(path)] == records


def is_encodable(record: object) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def test_jsonl_numbers_lines_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(files.read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_text('{"a": 1}\n\n{"a": 2\n')
    with pytest.raises(FileError, match=r"x\.jsonl line 3 is not JSON"):
        list(files.read_jsonl(path))


def test_reading_what_is_not_there_or_not_text_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(FileError, match="cannot be read"):
        files.read_text(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="cannot be read"):
        files.read_text(tmp_path / "binary")


def test_broken_json_is_located(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "a": 1\n"b"}')
    with pytest.raises(FileError, match=r"config\.json is not JSON: .*line 3 column 1"):
        files.read_json(path)
