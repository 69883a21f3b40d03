"""Holds what a training run does with bad samples, from the file on: fail, skip, set aside, and a limit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from llava.errors import DataError
from llava.train.config import DataOptions, OptimizerOptions, RunOptions, StageOptions, TrainConfig
from llava.train.trainer import train
from tests.train.runs import RUNS, options

PICTURES = RUNS / "finetune-data" / "images"


def config_of(
    folder: Path, policy: Literal["fail", "skip", "quarantine"], *, max_share: float = 0.5
) -> TrainConfig:
    """Write six good samples, one that is no JSON, one without its picture, one with nothing to train on."""
    good = json.loads((RUNS / "finetune-data" / "data.json").read_text())[:6]
    gone = {**good[0], "id": "gone", "image": "gone.png"}
    silent = {"id": "silent", "conversations": [{"from": "human", "value": "Who are you?"}]}
    lines = [*map(json.dumps, good[:3]), '{"id": "cut', *map(json.dumps, [gone, silent, *good[3:]])]
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return TrainConfig(
        model=options(),
        data=DataOptions(
            path=str(path),
            image_folder=str(PICTURES),
            max_length=256,
            bad_samples=policy,
            max_bad_share=max_share,
            num_workers=0,
        ),
        stage=StageOptions(name="align"),
        optimizer=OptimizerOptions(lr=1e-3),
        run=RunOptions(
            output_dir=str(folder / "out"),
            global_batch=3,
            micro_batch=3,
            device="cpu",
            probe_samples=0,
            save_final=False,
            legacy_files=False,
        ),
    )


def test_bad_samples_are_set_aside_and_the_rest_is_trained(tmp_path: Path) -> None:
    assert train(config_of(tmp_path, "quarantine")) == 0
    aside = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(one["index"], one["where"]) for one in aside] == [
        (3, "data.jsonl line 4"),
        (4, "data.jsonl line 5"),
        (5, "data.jsonl line 6"),
    ]
    assert [one["id"] for one in aside] == ["", "gone", "silent"]
    assert "not JSON" in aside[0]["reason"]
    assert "gone.png" in aside[1]["reason"]
    assert aside[1]["sample"]["image"] == "gone.png"
    steps = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 2  # six samples, three a step


def test_fail_names_the_first_and_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl line 4: not JSON"):
        train(config_of(tmp_path, "fail"))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_past_the_limit_skipping_fails_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of 9 samples cannot be used .* over the limit of 20\.00%"):
        train(config_of(tmp_path, "skip", max_share=0.2))


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_a_picture_that_goes_after_the_scan_is_met_while_loading(
    tmp_path: Path, policy: Literal["skip", "fail"]
) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(PICTURES, pictures)
    good = json.loads((RUNS / "finetune-data" / "data.json").read_text())[:6]
    config = config_of(tmp_path, policy)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in good))
    config = replace(
        config,
        data=replace(config.data, image_folder=str(pictures)),
        run=replace(config.run, resume=False, epochs=2.0),
    )
    assert train(replace(config, run=replace(config.run, max_steps=1))) == 0
    (pictures / good[0]["image"]).unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoint-1", ignore_errors=True)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    if policy == "fail":
        with pytest.raises(DataError, match=r"data\.jsonl line 1 \(img-00\): .*im00\.png"):
            train(config)
        return
    assert train(config) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert sum(line["num_skipped"] for line in lines) == 2  # once in each epoch
