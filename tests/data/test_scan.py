"""The scan: right lengths from any number of processes, kept on disk, and honest about what is bad."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from llava.data.policy import BadSampleLog
from llava.data.records import Record
from llava.data.scan import Scan, report, scan
from llava.errors import DataError
from llava.files import read_json, read_jsonl
from tests.data.samples import TRAINING, ListData, encoder, record, training_data, training_tokenizer


def records(num: int) -> list[Record | None]:
    made: list[Record | None] = []
    for number in range(num):
        images = ["a.png"] * (number % 3)
        question = " ".join(["<image>"] * len(images) + ["what is it"])
        made.append(record(question, "word " * (number % 11 + 1), images=images, name=f"s{number}"))
    return made


def same(first: Scan, second: Scan) -> bool:
    arrays = ("tokens", "targets", "pictures", "words", "is_usable", "is_truncated", "is_masked")
    return first.bad == second.bad and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    )


def test_lengths_are_those_of_the_encoded_samples() -> None:
    data = ListData(records(20))
    found = scan(data, encoder())
    for index in range(20):
        sample = encoder().encode(data[index])
        assert found.tokens[index] == sample.num_tokens
        assert found.targets[index] == sample.num_targets
        assert found.pictures[index] == index % 3
    assert found.is_usable.all()
    assert not found.is_truncated.any()


def test_words_are_the_originals_recorded_lengths() -> None:
    for run in ("pretrain", "finetune"):
        version = "plain" if run == "pretrain" else "v1"
        found = scan(training_data(run), encoder(version, tokenizer=training_tokenizer(run)))
        assert found.words.tolist() == read_json(TRAINING / run / "order.json")["dataset_modality_lengths"]


def test_any_number_of_processes_finds_the_same() -> None:
    data = ListData([*records(700), None, record("no place", "x", images=["a.png"])])
    alone = scan(data, encoder(max_length=64))
    assert alone.is_truncated.any()
    assert [bad.index for bad in alone.bad if bad.index >= 700] == [700, 701]
    assert same(scan(data, encoder(max_length=64), num_workers=2), alone)


def test_bad_and_masked_samples_are_told_apart_and_named(tmp_path: Path) -> None:
    data = ListData(
        [
            record("a", "b", name="good"),
            None,
            record("no place", "x", images=["a.png"], name="placeless", where="memory item 3"),
            record("a", "", name="empty", where="memory item 4"),
        ]
    )
    found = scan(data, encoder())
    assert found.is_usable.tolist() == [True, False, False, False]
    assert found.is_masked.tolist() == [False, False, False, True]
    assert [(bad.index, bad.id, bad.where) for bad in found.bad] == [
        (1, "", "memory item 2"),
        (2, "placeless", "memory item 3"),
    ]
    assert found.bad[1].reason.startswith("the sample has 0 place(s) for 1 picture(s)")
    assert "4 samples: 1 usable" in found.summary()
    assert "1 with nothing to train, 2 bad" in found.summary()
    log = BadSampleLog("quarantine", max_share=1.0, total=4, quarantine=tmp_path / "q.jsonl")
    report(found, data, log)
    assert [sample.index for sample in log.samples] == [1, 2, 3]
    assert [line["sample"] for _, line in read_jsonl(tmp_path / "q.jsonl")] == [
        {"number": n} for n in (1, 2, 3)
    ]


def test_the_policy_decides_whether_a_run_goes_on() -> None:
    bad = ListData([*records(9), None])
    found = scan(bad, encoder())
    with pytest.raises(DataError, match="memory item 10: the sample is broken"):
        report(found, bad, BadSampleLog("fail", max_share=1.0, total=10))
    with pytest.raises(DataError, match="1 of 10 samples cannot be used"):
        report(found, bad, BadSampleLog("skip", max_share=0.05, total=10))
    masked = ListData([*records(9), record("a", "")])
    log = BadSampleLog("fail", max_share=0.1, total=10)
    report(scan(masked, encoder()), masked, log)
    assert len(log) == 1


def test_a_scan_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ListData([*records(30), None])
    first = scan(data, encoder(), cache_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(ListData, "__getitem__", lambda *_: pytest.fail("measured again"))
    assert same(scan(data, encoder(), cache_folder=tmp_path), first)


def test_whatever_changes_lengths_makes_another_scan(tmp_path: Path) -> None:
    data = ListData(records(5))
    scan(data, encoder(), cache_folder=tmp_path)
    for changed in (
        encoder("llava_llama_2"),
        encoder(max_length=100),
        encoder(max_length=2048, truncation="original"),
        encoder(im_start_end=True),
        encoder(tokenizer=training_tokenizer("finetune")),
    ):
        before = len(list(tmp_path.iterdir()))
        scan(data, changed, cache_folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == before + 1
    scan(ListData(records(5), fingerprint="other"), encoder(), cache_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_broken_kept_scan_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ListData(records(5))
    first = scan(data, encoder(), cache_folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert same(scan(data, encoder(), cache_folder=tmp_path), first)
    assert "measured again" in caplog.text
    assert same(scan(data, encoder(), cache_folder=tmp_path), first)


def test_a_place_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        found = scan(ListData(records(3)), encoder(), cache_folder=tmp_path / "file" / "cache")
    assert found.num_samples == 3
    assert "cannot be kept" in caplog.text


def test_missing_pictures_are_found_where_asked(tmp_path: Path) -> None:
    there = tmp_path / "a.png"
    there.write_bytes(b"not opened")
    data = ListData(
        [
            record("<image>", "x", images=[str(there)]),
            record("<image>", "x", images=[str(tmp_path / "b.png")], name="lost"),
            record("<image>", "x", images=[b"bytes"]),
        ]
    )
    assert scan(data, encoder()).is_usable.all()
    found = scan(data, encoder(), checks_pictures=True)
    assert found.is_usable.tolist() == [True, False, True]
    assert (found.bad[0].id, "b.png does not exist" in found.bad[0].reason) == ("lost", True)


def test_progress_says_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    scan(ListData(records(600)), encoder(), on_progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]
    assert capsys.readouterr().err == ""
