"""Recipes: YAML with the sections of a run, checked with file and line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava.cli import main
from llava.errors import ConfigError, FileError, UsageError
from llava.train import launching
from llava.train.batch_sizes import Batches, derive_batches
from llava.train.config import DataOptions, ModelOptions, RunOptions, TrainConfig
from llava.train.launching import Launch, is_first, run_processes, world_size_of
from llava.train.options import flattened, from_text, options
from llava.train.precision import settle_precision
from llava.train.recipe import dump_recipe, load_recipe

MINIMAL = "model:\n  path: m\ndata:\n  path: d\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_recipe_states_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "optimizer:\n  lr: 2e-5\nrun:\n  report_to: [wandb]\n  epochs: 2\n")
    config = load_recipe(path)
    assert (config.model.path, config.data.path, config.optimizer.lr) == ("m", "d", 2e-5)
    assert (config.run.report_to, config.run.epochs, config.name) == (("wandb",), 2.0, "r")
    assert config.run.seed == RunOptions().seed


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "run:\n  seed: 1\n  epochs: 5\n", "base.yaml")
    path = write(tmp_path, "run:\n  seed: 2\ndefaults: base.yaml\nmodel:\n  path: other\n")
    config = load_recipe(path)
    assert (config.run.seed, config.run.epochs, config.model.path, config.data.path) == (2, 5.0, "other", "d")


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    overrides = {"run.seed": "7", "data.path": "none", "data.meta": "x.json", "stage.learns": "projector=all"}
    config = load_recipe(path, overrides)
    assert (config.run.seed, config.data.path, config.data.meta) == (7, None, "x.json")
    assert config.stage.learns == {"projector": "all"}


def test_what_a_run_writes_out_is_a_recipe_again(tmp_path: Path) -> None:
    stated = (
        MINIMAL + "optimizer: {lr: 1.0e-7}\nstage: {learns: {vision: 'last:4'}}\nrun: {report_to: [wandb]}\n"
    )
    config = load_recipe(write(tmp_path, stated))
    assert load_recipe(write(tmp_path, dump_recipe(config), "again.yaml")) == config


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("run:\n  sead: 1\n", r"r.yaml line 6: run.sead is no option.*Did you mean 'run.seed'"),
        ("runn:\n  seed: 1\n", r"section is 'runn' in .*r.yaml line 6.*Did you mean 'run'"),
        ("run:\n  seed: one\n", r"r.yaml line 6: run.seed is 'one'. It takes a whole number"),
        ("run:\n  seed: true\n", r"run.seed is True"),
        ("run:\n  resume: 1\n", r"run.resume is 1. It takes true or false"),
        ("run:\n  save_limit: many\n", r"It takes a whole number or none"),
        ("run:\n  report_to: wandb\n", r"It takes names, as a list"),
        ("run:\n  epochs: .inf\n", r"It takes a number"),
        ("stage:\n  name: lorra\n", r"stage.name is 'lorra' in .*r.yaml line 6.*Did you mean 'lora'"),
        ("stage:\n  bits: '4'\n", r"stage.bits is '4'"),
        ("run: 3\n", r"r.yaml line 5: 3 is no section"),
        ("run:\n  seed: 1\n  seed: 2\n", r"r.yaml line 7: seed is given twice"),
        ("defaults: r.yaml\n", r"include each other"),
        ("defaults: [r.yaml]\n", r"defaults is \['r.yaml'\]"),
    ],
)
def test_mistakes_are_named_with_file_and_line(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(write(tmp_path, MINIMAL + text))


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(FileError, match=r"r.yaml line 2 column \d+ is not YAML"):
        load_recipe(write(tmp_path, "run:\n  a: b: c\n"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data: {path: d}\n", "model.path is not set"),
        ("model: {path: m}\n", "both missing"),
        ("model: {path: m}\ndata: {path: d, meta: e}\n", "both set"),
    ],
)
def test_a_recipe_names_a_model_and_data(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(write(tmp_path, text))


def test_every_option_is_explained_and_spelled_back() -> None:
    assert not [path for path, option in options().items() if not option.help]
    for path, value in flattened(TrainConfig()).items():
        if not isinstance(value, dict):
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            assert from_text(options()[path], text) == value, path


def batches(world_size: int, packing: bool = False, **run: int) -> Batches:
    config = TrainConfig(ModelOptions(), DataOptions(packing=packing), run=RunOptions(**run))  # type: ignore[arg-type]
    return derive_batches(config, world_size)


@pytest.mark.parametrize(
    ("run", "world_size", "expected"),
    [
        ({"global_batch": 128, "micro_batch": 16}, 8, (128, 16, 1)),
        ({"global_batch": 128, "micro_batch": 16}, 1, (128, 16, 8)),
        ({"global_batch": 128, "accumulation": 4}, 8, (128, 4, 4)),
        ({"global_batch": 256}, 8, (256, 8, 4)),
        ({"global_batch": 6}, 1, (6, 6, 1)),
        ({"global_batch": 22}, 2, (22, 1, 11)),
        ({"micro_batch": 4, "accumulation": 2}, 2, (16, 4, 2)),
        ({"micro_batch": 4}, 3, (12, 4, 1)),
        ({}, 2, (16, 8, 1)),
        ({"global_batch": 512, "micro_batch": 2, "accumulation": 2}, 128, (512, 2, 2)),
    ],
)
def test_the_batch_is_stated_once_and_the_rest_derived(
    run: dict[str, int], world_size: int, expected: tuple[int, int, int]
) -> None:
    assert batches(world_size, False, **run) == expected


def test_numbers_that_do_not_multiply_show_the_arithmetic() -> None:
    with pytest.raises(
        ConfigError, match=r"128, but run.micro_batch 16 x run.accumulation 2 x 8 processes = 256"
    ):
        batches(8, global_batch=128, micro_batch=16, accumulation=2)
    with pytest.raises(ConfigError, match=r"x 3 processes"):
        batches(3, global_batch=128, micro_batch=16)
    with pytest.raises(ConfigError, match=r"run\.micro_batch is 0"):
        batches(1, micro_batch=0)


def test_packing_fills_passes_by_tokens_and_needs_no_even_division() -> None:
    assert batches(3, packing=True, global_batch=128, micro_batch=16) == (128, 16, 3)
    with pytest.raises(ConfigError, match="= 256"):
        batches(8, packing=True, global_batch=128, micro_batch=16, accumulation=2)


def test_a_dry_run_prints_a_recipe_with_its_arithmetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, MINIMAL + "run: {global_batch: 64, micro_batch: 4}\n")
    assert main(["train", str(path), "--dry-run", "--nproc", "2", "--run.seed", "5", "--data.packing"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# 64 samples a step = 4 a pass x 8 passes x 2 processes\n")
    again = load_recipe(write(tmp_path, printed, "again.yaml"))
    assert (again.run.seed, again.run.global_batch, again.name) == (5, 64, "r")
    assert main(["train", str(path), "--dry-run", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["batches"] == {"global_batch": 64, "micro_batch": 4, "accumulation": 16}
    assert value["config"]["model"]["path"] == "m"


def test_mistakes_on_the_command_line_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path, MINIMAL))
    assert main(["train", path, "--run.sead", "5"]) == 2
    assert "option --run.sead is not known. Did you mean --run.seed?" in capsys.readouterr().err
    assert main(["train", path, "--run.seed", "five", "--dry-run"]) == 2
    assert "--run.seed: run.seed is 'five'. It takes a whole number" in capsys.readouterr().err


def test_help_lists_every_option_with_its_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for path, option in options().items():
        assert f"--{path} " in printed
        assert " ".join(option.help.split()) in printed


SHOW = """
import json, os, sys, time
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
open(sys.argv[1] + os.environ["RANK"], "w").write(json.dumps([os.environ[name] for name in names]))
"""
FAIL = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    if sys.argv[1] == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3)
time.sleep(60)
"""
STOP = """
import os, signal, sys, time
def save(*_):
    time.sleep(1)
    open(sys.argv[1] + os.environ["RANK"], "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + "ready" + os.environ["RANK"], "w").close()
time.sleep(60)
"""


def test_each_process_gets_torchruns_variables(tmp_path: Path) -> None:
    launch = Launch(nproc=2, nnodes=2, node_rank=1, master_addr="node0", master_port=1234)
    assert run_processes(launch, [sys.executable, "-c", SHOW, f"{tmp_path}/"]) == 0
    found = [json.loads((tmp_path / rank).read_text()) for rank in ("2", "3")]
    assert found == [[str(2 + local), "4", str(local), "2", "node0", "1234"] for local in range(2)]


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("signal", 137)])
def test_one_that_fails_ends_the_others(
    how: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 0.5)
    begin = time.monotonic()
    assert run_processes(Launch(nproc=2), [sys.executable, "-c", FAIL, how]) == code
    assert time.monotonic() - begin < 30
    assert ("process 1 of this machine was ended by SIGKILL" in capsys.readouterr().err) == (how == "signal")


def test_a_run_that_is_told_to_stop_may_save(tmp_path: Path) -> None:
    code = (
        "import sys; from llava.train.launching import *;"
        "sys.exit(run_processes(Launch(nproc=2), [sys.executable, '-c', *sys.argv[1:]]))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, STOP, f"{tmp_path}/"])
    while len(list(tmp_path.glob("ready*"))) < 2:
        assert run.poll() is None
        time.sleep(0.05)
    run.terminate()
    assert run.wait(timeout=60) == 0
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


@pytest.mark.parametrize("numbers", [(0, 1, 0, None), (1, 2, 2, "x"), (1, 2, 0, None)])
def test_a_launch_that_cannot_be_is_refused(numbers: tuple[int, int, int, str | None]) -> None:
    with pytest.raises(UsageError):
        Launch(*numbers)


def test_torchrun_and_slurm_say_how_many_processes_there_are() -> None:
    assert world_size_of({}) == 1
    assert world_size_of({"WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "8"}) == 4
    assert world_size_of({"SLURM_STEP_NUM_TASKS": "8"}) == 8
    assert [is_first(where) for where in ({}, {"RANK": "0"}, {"SLURM_PROCID": "1"})] == [True, True, False]


def test_a_cpu_says_which_precision_it_uses_instead() -> None:
    said: list[str] = []
    config = TrainConfig(run=RunOptions(device="cpu", precision="float16"))
    settled = settle_precision(config, said.append)
    assert settled.run.precision in ("float32", "bfloat16")
    assert said == [f"warning: this CPU trains in no float16; {settled.run.precision} is used"]
    plain = TrainConfig(run=RunOptions(device="cpu", precision="float32"))
    assert settle_precision(plain, said.append) == plain
    assert len(said) == 1
