"""Checkpoints: whole or not there; a damaged one is passed over; the last good one is kept."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from llava.errors import CheckpointError, FileError
from llava.train.checkpoints import CheckpointStore, check_writable


def save(store: CheckpointStore, step: int, content: str = "weights") -> None:
    def write_state(folder: Path) -> None:
        (folder / "weights.bin").write_text(f"{content} {step}")

    store.write(step, write_state=write_state, info={"data": "hash"})


def test_the_newest_complete_checkpoint_is_found_with_what_was_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, limit=None)
    assert store.newest() is None
    for step in (5, 10, 100):
        save(store, step)
    saved = store.require_newest()
    assert (saved.step, saved.info["data"]) == (100, "hash")
    assert (saved.state / "weights.bin").read_text() == "weights 100"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, limit=2)
    for step in (1, 2, 3, 10):
        save(store, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-3"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "unfinished"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, limit=None)
    save(store, 1)
    save(store, 2)
    newest = tmp_path / "checkpoint-2"
    target = newest / "state" / "weights.bin"
    if damage == "flip":
        target.write_bytes(b"X" + target.read_bytes()[1:])
    elif damage == "cut":
        target.write_bytes(target.read_bytes()[:-1])
    elif damage == "remove":
        target.unlink()
    else:
        (newest / "complete.json").unlink()
    assert store.require_newest().step == 1
    assert "checkpoint-2" in caplog.text


def test_no_complete_checkpoint_is_an_error_where_one_is_required(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        CheckpointStore(tmp_path, limit=1).require_newest()


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_where_it_is(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, limit=1)
    save(store, 1)

    def fail(folder: Path) -> None:
        (folder / "weights.bin").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileError, match=r"No space left on device.*checkpoint-1"):
        store.write(2, write_state=fail, info={})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    save(store, 3)
    assert store.require_newest().step == 3


def test_remnants_of_a_killed_save_are_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-7.part" / "state").mkdir(parents=True)
    store = CheckpointStore(tmp_path, limit=1)
    assert store.newest() is None
    save(store, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_else(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        check_writable(blocked / "run")
    check_writable(tmp_path / "new" / "run")
    assert not any((tmp_path / "new" / "run").iterdir())
