"""Holds how parquet files and saved `datasets` folders are read, row by row and by pyarrow alone."""

from __future__ import annotations

import builtins
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.data.formats import open_source
from llava.data.records import RecordSource
from llava.errors import DataError, DependencyError, FileError
from tests.data.files import sample

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PNG = (Path(__file__).parents[1] / "fixtures" / "checkpoints" / "images" / "0.png").read_bytes()
ROWS = [
    sample(0, image={"bytes": PNG, "path": "0.png"}),
    sample(1, image={"bytes": None, "path": "1.png"}),
    {**sample(2), "image": None},
]


def open_here(path: Path, **options: Any) -> RecordSource:
    folder = path if path.is_dir() else path.parent
    return open_source(path, cache_folder=folder.parent / "cache", **options)


def many(num_rows: int) -> Any:
    return pa.Table.from_pylist([sample(number, image=f"{number}.png") for number in range(num_rows)])


def save_to_disk(folder: Path, shards: Sequence[Any]) -> Path:
    """Write what `datasets.Dataset.save_to_disk` writes, as far as it is read."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, table in zip(names, shards, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "parquet folder", "datasets folder"])
def test_pictures_as_bytes_paths_and_nothing(tmp_path: Path, kind: str) -> None:
    folder, table = tmp_path / "set", pa.Table.from_pylist(ROWS)
    path = folder / "rows.bin"
    if kind == "datasets folder":
        path = save_to_disk(folder, [table])
    else:
        folder.mkdir()
        if kind == "arrow file":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        else:
            path = folder / "rows.parquet" if kind == "parquet folder" else path
            pq.write_table(table, path)
        path = folder if kind == "parquet folder" else path
    source = open_here(path)
    assert [record.id for record in source] == ["s0", "s1", "s2"]  # type: ignore[attr-defined]
    assert source[0].images == (PNG,)
    assert source[1].images == (str(folder / "1.png"),)
    assert source[2].images == ()
    assert source[2].where == f"{source.name} row 3"
    assert len(source.fingerprint) == 64


def test_rows_of_a_list_of_pictures_and_messages(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "<image><image>Q"},
            {"role": "assistant", "content": "A"},
        ],
        "images": [{"bytes": PNG, "path": None}, {"bytes": PNG[::-1], "path": None}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert open_here(tmp_path / "a.parquet")[0].images == (PNG, PNG[::-1])


def test_many_row_groups_and_files_are_one_source_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    table = many(1000)
    pq.write_table(table.slice(0, 700), folder / "data" / "train-00000-of-00002.parquet", row_group_size=100)
    pq.write_table(table.slice(700), folder / "data" / "train-00001-of-00002.parquet", row_group_size=150)
    source = open_here(folder)
    assert len(source) == 1000
    for number in (999, 0, 699, 700, 255, 256, 849, 850):
        assert source[number].id == f"s{number}"
    with pytest.raises(IndexError):
        source[1000]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[701].id == "s701"
    assert len(pickle.dumps(source)) < 10_000


def test_shards_of_a_saved_dataset(tmp_path: Path) -> None:
    table = many(10)
    source = open_here(save_to_disk(tmp_path / "set", [table.slice(0, 7), table.slice(7)]))
    assert [source[number].id for number in (9, 7, 6, 0)] == ["s9", "s7", "s6", "s0"]


def test_the_training_split_is_taken_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "set"
    save_to_disk(folder / "train", [many(5)])
    save_to_disk(folder / "test", [many(3)])
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(open_here(folder)) == 5
    assert "split train is used; left out: test" in caplog.text
    (folder / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    with pytest.raises(FileError, match="none is called train"):
        open_here(folder)


def test_parquet_files_of_other_splits_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, size in (("train-00000-of-00001", 5), ("validation-00000-of-00001", 3), ("test", 2)):
        pq.write_table(many(size), folder / f"{name}.parquet")
    assert len(open_here(folder)) == 5
    assert "left out: test, validation" in caplog.text


def test_the_copy_of_a_parquet_file_is_made_once_per_content(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(many(5), folder / "a.parquet")
    first = open_here(folder / "a.parquet")
    (copy,) = (tmp_path / "cache").glob("*.arrow")
    status = copy.stat()
    assert open_here(folder / "a.parquet").fingerprint == first.fingerprint
    assert copy.stat().st_mtime_ns == status.st_mtime_ns
    pq.write_table(many(6), folder / "a.parquet")
    assert len(open_here(folder / "a.parquet")) == 6
    assert open_here(folder / "a.parquet").fingerprint != first.fingerprint


def test_broken_tables_are_errors(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(FileError, match="no whole parquet file"):
        open_here(folder / "a.parquet")
    (folder / "a.arrow").write_bytes(b"ARROW1\0\0 and no more")
    with pytest.raises(FileError, match="no whole arrow file"):
        open_here(folder / "a.arrow")
    pq.write_table(many(1).slice(1), folder / "empty.parquet")
    with pytest.raises(FileError, match="holds no rows"):
        open_here(folder / "empty.parquet")
    pq.write_table(pa.table({"text": ["x"]}), folder / "columns.parquet")
    with pytest.raises(DataError, match=r"columns row 1: .*its keys: text"):
        open_here(folder / "columns.parquet")[0]


def test_a_saved_dataset_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "set", [many(2)])
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(
        json.dumps({**state, "_indices_data_files": [{"filename": "i.arrow"}]})
    )
    with pytest.raises(FileError, match="flatten_indices"):
        open_here(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    with pytest.raises(FileError, match=r"gone\.arrow"):
        open_here(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(FileError, match="lists no `_data_files`"):
        open_here(folder)


def test_without_pyarrow_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(many(1), tmp_path / "a.parquet")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"pip install .*\[train\]"):
        open_here(tmp_path / "a.parquet")
