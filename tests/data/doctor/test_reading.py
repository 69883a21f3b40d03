"""Broken files are read past their faults, and every fault is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.data.doctor.reading import read_items
from llava.data.doctor.sources import data_files

A = '{"id": "a", "conversations": []}'
B = '{"id": "b", "conversations": [{"from": "human", "value": "x ] } { [ , \\" y"}]}'


def read(path: Path, content: str | bytes) -> tuple[list[object], list[tuple[str, int]]]:
    """Return the ids that were read, and the faults as (code, line)."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    faults: list[tuple[str, int]] = []
    items = list(read_items(path, lambda code, line, _: faults.append((code, line))))
    return [
        (item.value or {}).get("id") if isinstance(item.value, dict) else item.value for item in items
    ], faults


@pytest.mark.parametrize(
    ("content", "ids", "faults"),
    [
        (f"[\n{A},\n{B}\n]\n", ["a", "b"], []),
        (f"[{A},{B}]", ["a", "b"], []),
        (f"{A}\n{B}\n", ["a", "b"], []),
        (f"{A}\n\n{B}", ["a", "b"], []),
        (f"\ufeff[{A}]", ["a"], [("file-bom", 1)]),
        (f"\ufeff{A}\n", ["a"], [("file-bom", 1)]),
        (f"[\n{A},\r\n{B}\n]", ["a", "b"], [("file-crlf", 2)]),
        (f"[\n{A},\n{B},\n]", ["a", "b"], [("json-trailing-comma", 3)]),
        (f"[\n{A},,\n{B}\n]", ["a", "b"], [("json-trailing-comma", 2)]),
        (f"[\n{A}\n{B}\n]", ["a", "b"], [("json-comma-missing", 3)]),
        (f"[\n{A},\n{B}\n", ["a", "b"], [("json-unclosed", 4)]),
        (f"[\n{A}\n]\n{B}\n", ["a"], [("json-extra", 4)]),
        (f'[\n{{"id": "c",\n "x": }},\n{B}\n]', ["b"], [("json-syntax", 3)]),
        (f'[\n{{"id": "c, "x": 1}},\n{B}\n]', ["b"], [("json-syntax", 2)]),
        (f'[\n{{"id": "c", "x": [1, 2}},\n{B}\n]', ["b"], [("json-syntax", 2)]),
        (f'[\n{{"id": "c", "conversations": [{{}},\n{B},\n{A}]', ["b", "a"], [("json-syntax", 3)]),
        (f'{A}\n{{"id": \n{B}\n', ["a", "b"], [("json-syntax", 2)]),
        (f"{A},\n{B}\n", ["a", "b"], [("json-trailing-comma", 1)]),
        (f'[\n{{"id": "d", "v": "a\tb"}},\n{B}\n]', ["d", "b"], [("json-control-character", 2)]),
        (f'[\n{{"id": "d", "id": "e"}},\n{B}\n]', ["e", "b"], [("json-duplicate-key", 2)]),
        (b'[\n{"id": "d",\n"v": "\xff"}]', ["d"], [("file-encoding", 3)]),
        ("", [], [("file-empty", 0)]),
        (" \n", [], [("file-empty", 0)]),
        ('{\n"data": []\n}', [], [("not-a-list", 1)]),
        ('{\n"id": "f", "conversations": []\n}', ["f"], [("not-a-list", 1)]),
        (f'[\n{A},\n5, "word",\n[1, 2],\n{B}\n]', ["a", 5, "word", [1, 2], "b"], []),
    ],
)
def test_samples_around_a_fault_are_read(
    tmp_path: Path, content: str | bytes, ids: list[object], faults: list[tuple[str, int]]
) -> None:
    assert read(tmp_path / "x.json", content) == (ids, faults)


def test_every_single_cut_of_a_file_is_read_without_an_exception(tmp_path: Path) -> None:
    content = json.dumps([json.loads(A), json.loads(B), json.loads(A)], indent=1)
    for length in range(len(content)):
        ids, faults = read(tmp_path / "x.json", content[:length])
        assert faults
        assert ids == ["a", "b", "a"][: len(ids)]


def test_a_line_is_where_the_sample_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([json.loads(A), json.loads(B), json.loads(B)], indent=2), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").split("\n")
    for item in read_items(path, lambda *_: None):
        assert lines[item.line - 1].strip() == "{"


def mixture(folder: Path, entries: dict[str, object]) -> list[tuple[str, str]]:
    """Return the faults of a meta file as (code, entry)."""
    (folder / "a.jsonl").write_text(A, encoding="utf-8")
    (folder / "b.jsonl").write_text(B, encoding="utf-8")
    (folder / "pictures").mkdir(exist_ok=True)
    meta = folder / "meta.json"
    meta.write_text(json.dumps(entries), encoding="utf-8")
    faults: list[tuple[str, str]] = []
    data_files(str(meta), None, lambda code, entry, _: faults.append((code, entry)))
    return faults


def test_a_sound_mixture_has_no_faults(tmp_path: Path) -> None:
    entries: dict[str, object] = {
        "a": {"root": "", "annotation": "a.jsonl", "data_augment": False, "repeat_time": 2},
        "b": {"root": "pictures", "annotation": str(tmp_path / "b.jsonl"), "weight": 0.5},
    }
    assert mixture(tmp_path, entries) == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"annotation": "none.jsonl"}, "mixture-annotation"),
        ({"annotation": None}, "mixture-annotation"),
        ({"annotation": "a.jsonl"}, "mixture-annotation-twice"),
        ({"root": "nowhere"}, "mixture-root"),
        ({"repeat_time": 0}, "mixture-repeat"),
        ({"repeat_time": "2"}, "mixture-repeat"),
        ({"repeat_time": True}, "mixture-repeat"),
        ({"weight": -1}, "mixture-weight"),
        ({"repeat": 2}, "mixture-key"),
        ({"data_augment": True}, "mixture-augment"),
    ],
)
def test_a_fault_of_a_mixture_is_named(tmp_path: Path, fields: dict[str, object], code: str) -> None:
    entries: dict[str, object] = {
        "a": {"root": "", "annotation": "a.jsonl"},
        "b": {"root": "", "annotation": "b.jsonl", **fields},
    }
    assert mixture(tmp_path, entries) == [(code, "b")]
    assert mixture(tmp_path, {"a": entries["a"], "c": "a.jsonl"}) == [("mixture-entry", "c")]
