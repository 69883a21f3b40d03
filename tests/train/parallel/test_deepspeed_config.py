"""The original's DeepSpeed files, without "auto"."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.errors import ConfigError, DependencyError, FileError
from llava.train.parallel.deepspeed_config import Resolved, read_deepspeed, resolve
from llava.train.parallel.deepspeed_engine import require_deepspeed
from tests.train.parallel import runs
from tests.train.parallel.test_engines import HAS_DEEPSPEED, ROOT, assert_equal_figures, single

ZERO3_OFFLOAD: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 100000,
}


def resolved(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Resolved:
    return resolve(config, world_size=8, hidden_size=4096, compute_dtype=dtype)


def test_every_auto_gets_a_number() -> None:
    config, _ = resolved(ZERO3_OFFLOAD)
    zero = config["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4096 * 4096
    assert zero["stage3_prefetch_bucket_size"] == 15099494
    assert zero["stage3_param_persistence_threshold"] == 40960
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)
    micro, steps = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == micro * steps * 8
    assert "auto" not in json.dumps(config)


def test_what_is_ours_leaves_with_a_warning_when_it_said_something() -> None:
    config, warnings = resolved(ZERO3_OFFLOAD)
    assert not {"optimizer", "scheduler", "gradient_clipping"} & config.keys()
    assert [warning.split(" ")[0] for warning in warnings] == ["optimizer", "scheduler"]
    _, warnings = resolved({**ZERO3_OFFLOAD, "gradient_clipping": 0.5, "train_batch_size": 128})
    assert len(warnings) == 4


def test_both_spellings_of_gathering_weights_are_taken() -> None:
    right = "stage3_gather_16bit_weights_on_model_save"
    assert resolved(ZERO3_OFFLOAD).config["zero_optimization"][right] is True
    spelt = {"zero_optimization": {"stage": 3, right: False, right.removeprefix("stage3_"): True}}
    assert resolved(spelt).config["zero_optimization"] == {"stage": 3, right: False}


def test_the_file_itself_is_left_as_it_was() -> None:
    before = json.dumps(ZERO3_OFFLOAD)
    assert resolved(ZERO3_OFFLOAD).offloads_optimizer
    assert json.dumps(ZERO3_OFFLOAD) == before
    assert not resolved({"zero_optimization": {"stage": 2}}).offloads_optimizer


def test_a_precision_that_is_not_the_runs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"enables bf16, and the run computes in float32.*bfloat16"):
        resolved({**ZERO3_OFFLOAD, "bf16": {"enabled": True}}, torch.float32)


def test_an_auto_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has aio\.block_size auto"):
        resolved({**ZERO3_OFFLOAD, "aio": {"block_size": "auto"}})


@pytest.mark.parametrize("content", ["[]", "{}", '{"zero_optimization": {"stage": 0}}'])
def test_a_file_without_a_stage_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="1, 2 or 3"):
        read_deepspeed(str(path))
    with pytest.raises(FileError):
        read_deepspeed(str(tmp_path / "missing.json"))


@pytest.mark.skipif(HAS_DEEPSPEED, reason="deepspeed is installed")
def test_a_missing_deepspeed_names_the_extra() -> None:
    with pytest.raises(DependencyError, match=r"internvl-chat-llava\[deepspeed\]"):
        require_deepspeed(torch.device("cpu"))


OFFLOADED = """
import json, sys
from llava.train.config import RunOptions
from llava.train.parallel.launch import make_engine
from tests.train.parallel import runs
engine = make_engine(RunOptions(device="cpu", deepspeed=sys.argv[1]))
runs.prepare(engine, "language")
print(json.dumps(runs.train(engine, runs.STEPS)))
engine.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_on_the_cpu_takes_the_same_steps(stage: int, tmp_path: Path) -> None:
    # Slow where DeepSpeed's optimizer was never compiled: about two minutes.
    path = tmp_path / "offload.json"
    zero = {**ZERO3_OFFLOAD["zero_optimization"], "stage": stage}
    if stage == 2:
        del zero["offload_param"]
    path.write_text(json.dumps({**ZERO3_OFFLOAD, "zero_optimization": zero}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", OFFLOADED, str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    engine = single()
    runs.prepare(engine, "language")
    assert_equal_figures(json.loads(done.stdout.splitlines()[-1]), runs.train(engine, runs.STEPS))
