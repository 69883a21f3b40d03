"""Holds how data files are opened: by content, at random, from the cache, in little memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llava.data import index
from llava.data.formats import open_source
from llava.data.records import RecordSource
from llava.errors import DataError, FileError
from tests.data.files import sample, write_lines, write_list

AWKWARD: list[Any] = [
    sample(0, image="a.png"),
    sample(1, question='He said "{[" and \\"]}\\" \\\\'),
    sample(2, question="ends in a backslash \\"),
    sample(3, question="[1, {2}] , ]} \n\t line\u2028 gr\u00fc\u00df \U0001f600"),
    sample(4, question='""""', tags=[[], {}, [[1, {"a": []}]], "]", ""]),
    sample(5),
]


def open_here(path: Path, **options: Any) -> RecordSource:
    return open_source(path, cache_folder=path.parent / "cache", **options)


def raws(source: RecordSource) -> list[object]:
    return [source.raw(number) for number in range(len(source))]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("layout", ["lines", "list", "indented list"])
def test_every_sample_is_found_whatever_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(index, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "data.txt"  # names do not decide
    if layout == "lines":
        write_lines(path, AWKWARD)
    else:
        write_list(path, AWKWARD, indent=2 if layout == "indented list" else None)
    source = open_here(path)
    assert raws(source) == AWKWARD
    assert [source[number].id for number in (5, 0, 3)] == ["s5", "s0", "s3"]
    assert source.name == "data"
    assert source[0].images == (str(tmp_path / "a.png"),)


@pytest.mark.parametrize(
    "text", ["{}", "[ {} ]", "\ufeff[\n{},\n{}\n]\n", "\ufeff{}\n{}", "\n\n{}\n\r\n  \n{}\r\n"]
)
@pytest.mark.parametrize("chunk_bytes", [3, 5, 1 << 20])
def test_white_space_blank_lines_and_byte_order_marks_are_no_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(index, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8", newline="")
    source = open_here(path)
    assert raws(source) == [{}] * text.count("{")


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    lines = open_here(write_lines(tmp_path / "a.jsonl", [sample(0), "", "  ", sample(1), "", sample(2)]))
    assert [lines[number].where for number in range(3)] == [
        "a.jsonl line 1",
        "a.jsonl line 4",
        "a.jsonl line 6",
    ]
    items = open_here(write_list(tmp_path / "a.json", [sample(0), sample(1)]))
    assert items[1].where == "a.json item 2"


def test_a_broken_sample_spoils_only_itself(tmp_path: Path) -> None:
    source = open_here(write_lines(tmp_path / "a.jsonl", [sample(0), '{"id": 1, ', "[1]", sample(3)]))
    assert source[3].id == "s3"
    with pytest.raises(DataError, match="line 2: not JSON: Expecting property name") as caught:
        source[1]
    assert caught.value.where == "a.jsonl line 2"
    with pytest.raises(DataError, match="line 3: a sample is of type list"):
        source[2]


def test_a_broken_sample_in_a_list_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": 1 "a": 2}, "text", 5, null, {"id": 2}, [3], "]"]')
    source = open_here(path)
    assert len(source) == 7
    assert source.raw(4) == {"id": 2}
    with pytest.raises(DataError, match="item 1: not JSON"):
        source[0]
    for number, kind in ((1, "str"), (2, "int"), (3, "NoneType"), (5, "list"), (6, "str")):
        with pytest.raises(DataError, match=f"item {number + 1}: a sample is of type {kind}"):
            source[number]


def test_bytes_that_are_no_utf8_are_an_error_of_their_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n{"id": 2}\n')
    source = open_here(path)
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        source.raw(0)
    assert source.raw(1) == {"id": 2}


ITEM = '{"id": 1}'
WHOLE_FILE_ERRORS = [
    ("", "is empty"),
    (" \n ", "is empty"),
    ("[]", "holds no samples"),
    ("hello", "begins with b'hello'"),
    ('{\n "a": 1\n}\n', "laid out over several lines"),
    (f"[{ITEM},\n{ITEM},\n]", "line 2 is not JSON: a comma stands before the end"),
    (f"[{ITEM}\n{ITEM}]", "line [12] is not JSON: a comma is missing"),
    (f"[{ITEM},\n{ITEM}", "is cut off: the list of 2"),
    (f'[{ITEM},\n{{"id": 2,\n"a', r"line 3 is not JSON \(item 2\)"),
    (f'[{ITEM},\n{{"id": "2}},\n{ITEM}]', r"line 2 is not JSON \(item 2\)"),
    (f'[{ITEM},\n{{"id": [2}},\n{ITEM}]', r"line 2 is not JSON \(item 2\)"),
    (f"[{ITEM},\nnope,\n{ITEM}]", "line 2 is not JSON: 'nope"),
    (f"[{ITEM}]\n[{ITEM}]", "line 1: text follows the end"),
    ("\x1f\x8b123", "packed with gzip"),
]


@pytest.mark.parametrize(("text", "message"), WHOLE_FILE_ERRORS)
def test_damage_to_the_whole_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=message) as caught:
        open_here(path)
    assert str(path) in str(caught.value)


def test_what_does_not_exist_or_holds_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        open_here(tmp_path / "none.json")
    with pytest.raises(FileError, match="neither parquet files nor a saved dataset"):
        open_here(tmp_path)
    data = write_lines(tmp_path / "a.jsonl", [sample(0)])
    with pytest.raises(FileError, match=r"picture folder .*nowhere does not exist"):
        open_here(data, image_folder=tmp_path / "nowhere")
    with pytest.raises(IndexError, match="no number 1"):
        open_here(data)[1]


def test_picture_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path / "pictures")
    path = write_lines(tmp_path / "a.jsonl", [sample(0, image="a.png"), sample(1, image="../b.png")])
    assert open_here(path, image_folder="")[0].images == (str(tmp_path / "pictures" / "a.png"),)
    named = open_here(path, image_folder=tmp_path / "pictures", name="mine")
    assert named[0].images == (str(tmp_path / "pictures" / "a.png"),)
    assert named[0].source == "mine"
    with pytest.raises(DataError, match="outside"):
        named[1]
    assert open_here(path)[1].images == (str(tmp_path.parent / "b.png"),)


def test_a_second_open_reads_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_SETTLED_NS", -(10**12))
    for path in (write_lines(tmp_path / "a.jsonl", AWKWARD), write_list(tmp_path / "a.json", AWKWARD)):
        first = open_here(path)

        def refuse(*_: object) -> None:
            raise AssertionError("the file was read again")

        with monkeypatch.context() as context:
            context.setattr(index, "_chunks", refuse)
            second = open_here(path)
        assert raws(second) == raws(first) == AWKWARD
        assert second.fingerprint == first.fingerprint


def test_the_fingerprint_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    import hashlib

    path = write_lines(tmp_path / "a.jsonl", AWKWARD)
    assert open_here(path).fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_changed_content_is_seen_even_with_size_and_time_kept(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [sample(1), sample(2)])
    before, status = open_here(path), path.stat()
    write_lines(path, [sample(3), sample(4)])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = open_here(path)
    assert path.stat().st_size == status.st_size
    assert after[0].id == "s3"
    assert after.fingerprint != before.fingerprint
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_SETTLED_NS", -(10**12))
    path = write_lines(tmp_path / "a.jsonl", AWKWARD)
    open_here(path)
    for damaged in (tmp_path / "cache").iterdir():
        damaged.write_bytes(damaged.read_bytes()[:20])
        assert raws(open_here(path)) == AWKWARD


def test_without_a_writable_cache_the_index_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "a.jsonl", AWKWARD)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert raws(open_here(path)) == AWKWARD
    assert "stays in memory" in caplog.text


def _read_all(source: RecordSource, begin: int, results: Any) -> None:
    numbers = [(begin + step * 37) % len(source) for step in range(len(source))]
    results.put([source[number].id == f"s{number}" for number in numbers])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_processes_share_a_source(tmp_path: Path, method: str) -> None:
    source = open_here(write_lines(tmp_path / "a.jsonl", (sample(number) for number in range(200))))
    assert source[0].id == "s0"  # the file is open when the processes begin
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    processes = [context.Process(target=_read_all, args=(source, begin, results)) for begin in (0, 50, 100)]
    for process in processes:
        process.start()
    assert all(all(results.get(timeout=60)) for _ in processes)
    for process in processes:
        process.join()


def test_a_copy_of_a_source_holds_no_samples(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", (sample(number, question="x" * 1000) for number in range(500)))
    source = open_here(path)
    copy = pickle.loads(pickle.dumps(source))
    assert raws(copy) == raws(source)
    assert len(pickle.dumps(source)) < 10_000


@pytest.mark.parametrize("layout", ["lines", "list"])
def test_memory_does_not_grow_with_the_size_of_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(index, "_CHUNK_BYTES", 1 << 20)
    peaks = []
    for size in (50, 20_000):  # 0.4 and 50 MB in all
        path = tmp_path / f"{size}.json"
        record = json.dumps(sample(0, question="x" * size))
        with path.open("w") as stream:
            begin, between, end = ("[", ",\n", "]") if layout == "list" else ("", "\n", "\n")
            stream.write(begin + between.join([record] * 2_500) + end)
        tracemalloc.start()
        source = open_here(path)
        for number in range(0, 2_500, 25):
            assert source[number].id == "s0"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 50_000_000
    assert peaks[1] < 12e6  # a chunk of 1 MB, and the arrays over its bytes
