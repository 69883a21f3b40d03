"""Nothing is lost: a run that is killed, stopped or hit by bad data ends as it should."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.faults import ROOT, STAGES, command, kill_once, outcome, run_to_end, torment
from llava.train.train import main
from tests.train.test_replay import lines_of

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def arguments(stage: str, output_dir: Path, *extra: str) -> list[str]:
    """Return a short run's command line, to be run in this process."""
    return [*command(stage, output_dir, epochs=1)[2:], *extra]


@pytest.mark.parametrize("stage", ["lora", "pretrain"])
def test_a_run_killed_inside_a_save_ends_with_the_same_bits(stage: str, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    assert main(arguments(stage, calm)) == 0
    folder = tmp_path / "killed"
    argv = [*command(stage, folder, epochs=1)]
    assert kill_once(argv, folder, random.Random(3), in_save=True) != "finished"
    assert run_to_end(argv, folder) == outcome(calm)
    assert [line["step"] for line in lines_of(folder)] == list(range(1, len(lines_of(calm)) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(STAGES))
def test_twenty_kills_change_nothing(stage: str, tmp_path: Path) -> None:
    calm, killed, hits = torment(stage, tmp_path, kills=20, seed=1)
    assert calm == killed
    # How many fall inside a save is chance, and the fewer the faster a machine saves.
    assert hits.count("in a save") >= 1


def test_sigterm_saves_and_exits_with_zero_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = command("finetune", folder, epochs=2)
    argv[argv.index("--save_steps") + 1] = "1000"
    process = subprocess.Popen(argv, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "stopped with a checkpoint" in said
    done = len(lines_of(folder))
    assert 0 < done < 16
    assert (folder / f"checkpoint-{done}" / "complete.json").is_file()
    assert main(argv[2:]) == 0
    calm = tmp_path / "calm"
    assert main([*argv[2:], "--output_dir", str(calm)]) == 0
    assert outcome(folder) == outcome(calm)


def write_records(folder: Path, *, num_bad: int) -> Path:
    """Write the recorded data with some pictures that are not there."""
    source = ROOT / "tests" / "fixtures" / "training" / "finetune-data"
    records = json.loads((source / "data.json").read_text())
    with_pictures = [record for record in records if "image" in record]
    for record in with_pictures[:num_bad]:
        record["image"] = "missing.png"
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("policy", ["fail", "skip", "quarantine"])
def test_bad_samples_are_handled_as_asked(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_records(tmp_path, num_bad=2)
    folder = tmp_path / "run"
    extra = ["--data_path", str(data), "--bad_samples", policy, "--max_bad_share", "0.1"]
    code = main(arguments("finetune", folder, *extra))
    said = capsys.readouterr().err
    if policy == "fail":
        assert code == 2
        assert "missing.png" in said
        return
    assert code == 0
    assert sum(line["num_samples"] for line in lines_of(folder)) == 30
    if policy == "quarantine":
        assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 2


def test_too_many_bad_samples_end_the_run_whatever_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_records(tmp_path, num_bad=5)
    extra = ["--data_path", str(data), "--bad_samples", "skip", "--max_bad_share", "0.1"]
    assert main(arguments("finetune", tmp_path / "run", *extra)) == 2
    assert "over the limit" in capsys.readouterr().err


def test_a_run_shows_validation_answers_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    extra = [
        "--validation_share",
        "0.2",
        "--eval_steps",
        "3",
        "--probe_samples",
        "2",
        "--eval_strategy",
        "steps",
    ]
    assert main(arguments("finetune", folder, *extra)) == 0
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    validations = [event for event in events if event["kind"] == "validation"]
    assert [event["step"] for event in validations][:2] == [3, 6]
    assert validations[-1]["loss"] < validations[0]["loss"]
    answers = [answer for event in events if event["kind"] == "probe" for answer in event["answers"]]
    assert len(answers) >= 2
    assert "<svg" in (folder / "report.html").read_text()
    trained = sum(line["num_samples"] for line in lines_of(folder))
    assert 20 <= trained < 32
