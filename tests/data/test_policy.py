"""Holds what happens to samples that cannot be used: named, counted once, limited, set aside."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llava.data.policy import BadSample, BadSampleLog, Policy
from llava.errors import ConfigError, DataError


def bad(index: int, source: str = "a") -> BadSample:
    return BadSample(index, f"id{index}", source, f"{source}.json item {index + 1}", "no such file")


def test_fail_ends_at_the_first() -> None:
    log = BadSampleLog("fail", max_share=1.0, total=1000)
    with pytest.raises(DataError, match=r"a\.json item 6 \(id5\): no such file") as caught:
        log.add(bad(5))
    assert "llava doctor" in caught.value.remedy


def test_under_fail_a_sample_with_nothing_to_train_on_counts_towards_the_limit_alone() -> None:
    log = BadSampleLog("fail", max_share=0.01, total=100)
    log.add(bad(0), is_fatal=False)
    assert len(log) == 1
    with pytest.raises(DataError, match="2 of 100 samples"):
        log.add(bad(1), is_fatal=False)


def test_skip_counts_each_index_once_and_fails_past_the_limit() -> None:
    log = BadSampleLog("skip", max_share=0.02, total=100)
    for index in (4, 9, 4, 9, 4):
        log.add(bad(index))
    assert len(log) == 2
    assert log.share == 0.02
    assert 4 in log
    assert 5 not in log
    with pytest.raises(DataError, match=r"3 of 100 samples .*\(3\.00%\), over the limit of 2\.00%"):
        log.add(bad(7))


def test_the_first_ten_are_named_and_the_rest_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = BadSampleLog("skip", max_share=1.0, total=100)
    with caplog.at_level(logging.WARNING):
        for index in range(20):
            log.add(bad(index))
    assert len(caplog.messages) == 11
    assert caplog.messages[0] == "bad sample 1: a.json item 1 (id0): no such file"
    assert caplog.messages[9].startswith("bad sample 10:")
    assert "not named" in caplog.messages[10]


def test_quarantine_writes_each_sample_once_over_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    for _ in range(2):
        log = BadSampleLog("quarantine", max_share=1.0, total=10, quarantine=path)
        log.add(bad(3), content={"id": "id3", "image": {"bytes": b"1234"}, "n": [1, None]})
        log.add(bad(5))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == [3, 5]
    assert lines[0]["sample"] == {"id": "id3", "image": {"bytes": "<4 bytes>"}, "n": [1, None]}
    assert lines[0]["where"] == "a.json item 4"
    assert lines[0]["reason"] == "no such file"


def test_what_every_rank_reports_is_written_and_said_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quarantine.jsonl"
    for rank in range(2):
        log = BadSampleLog("quarantine", max_share=1.0, total=9, quarantine=path, is_speaking=rank == 0)
        log.add(bad(3), is_shared=True)
        log.add(bad(5 + rank))
        assert len(log) == 2
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [3, 5, 6]
    assert len(caplog.messages) == 2


def test_skip_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    BadSampleLog("skip", max_share=1.0, total=10, quarantine=path).add(bad(3))
    assert not path.exists()


def test_what_ranks_know_is_joined() -> None:
    logs = [BadSampleLog("skip", max_share=0.25, total=8) for _ in range(2)]
    logs[0].add(bad(1))
    logs[0].add(bad(6, "b"))
    logs[1].add(bad(2))
    logs[1].add(bad(1))
    states = [json.loads(json.dumps(log.state())) for log in logs]
    for log in logs:
        log.merge(*states)
        assert [sample.index for sample in log.samples] == [1, 2, 6]
        with pytest.raises(DataError, match="3 of 8"):
            log.check()
    assert logs[0].state() == logs[1].state()
    assert logs[0].summary() == "3 of 8 samples cannot be used (37.50%; a 2, b 1)"


def test_a_sum_over_ranks_is_checked_against_the_limit() -> None:
    log = BadSampleLog("skip", max_share=0.1, total=100)
    log.check(10)
    with pytest.raises(DataError, match="11 of 100"):
        log.check(11)


def test_without_bad_samples_there_is_nothing_to_say() -> None:
    assert BadSampleLog("skip", max_share=0.0, total=0).summary() == ""


@pytest.mark.parametrize(
    ("policy", "share", "message"),
    [("ignore", 0.1, "bad_samples"), ("skip", 1.5, "max_bad_share"), ("quarantine", 0.1, "no file")],
)
def test_values_that_cannot_be_are_refused(policy: Policy, share: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BadSampleLog(policy, max_share=share, total=10)
