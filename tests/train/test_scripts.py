"""The original's scripts: each is there under its name and runs the recipe with its hyperparameters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from llava.train.batch_sizes import derive_batches
from llava.train.recipe import load_recipe
from tests.documents import ROOT


class Row(NamedTuple):
    """A row of the original's table."""

    script: str
    model: str
    tower: str
    layer: int
    projector: str
    stage: str
    zero: str
    lr: float
    micro_batch: int
    accumulation: int
    version: str
    save_steps: int
    epochs: float = 1.0
    gpus: int = 8


def internvl() -> list[Row]:
    rows = []
    for kind, layer in (("224to336", -4), ("448", -4), ("448_v1_2", -1), ("448_v1_5", -1)):
        tower = {"224to336": "224px", "448": "448px", "448_v1_2": "448px-V1-2", "448_v1_5": "448px-V1-5"}[
            kind
        ]
        is_new = layer == -1
        for size in ("13b",) if is_new else ("7b", "13b"):
            stem = f"internvit6b_{kind}_vicuna{size}"
            same = (f"vicuna-{size}-v1.5", f"InternViT-6B-{tower}", layer, "mlp2x_gelu")
            batch = (16, 2) if is_new else (32, 1)
            zero = "zero1" if is_new else "zero2"
            saves = 100 if is_new else 1000
            pretrain, finetune = (
                f"scripts_internvl/pretrain_{stem}.sh",
                f"scripts_internvl/finetune_{stem}.sh",
            )
            rows.append(Row(pretrain, *same, "align", zero, 1e-3, *batch, "plain", 1000))
            rows.append(Row(finetune, *same, "finetune", "zero3", 2e-5, 16, 1, "v1", saves))
    return rows


CLIP, OLD_CLIP = "clip-vit-large-patch14-336", "clip-vit-large-patch14"
V15 = ("vicuna-13b-v1.5", CLIP, -2, "mlp2x_gelu")
TASK = ("llava-v1.5-13b", CLIP, -2, "mlp2x_gelu")
OLD = ("vicuna-v1-3-7b", OLD_CLIP, -2, "linear")
CUSTOM = "scripts_internvl/finetune_internvit6b_224to336_vicuna13b_custom_data.sh"
ROWS = [
    *internvl(),
    Row(CUSTOM, "vicuna-13b-v1.5", "InternViT-6B-224px", -4, "mlp2x_gelu", "finetune", "zero1", 2e-5, 2, 2,
        "v1", 1000, gpus=128),
    Row("scripts/v1_5/pretrain.sh", *V15, "align", "zero2", 1e-3, 32, 1, "plain", 24000),
    Row("scripts/v1_5/finetune.sh", *V15, "finetune", "zero3", 2e-5, 16, 1, "v1", 50000),
    Row("scripts/v1_5/finetune_lora.sh", *V15, "lora", "zero3", 2e-4, 16, 1, "v1", 50000),
    Row("scripts/v1_5/finetune_task.sh", *TASK, "finetune", "zero3", 2e-5, 16, 1, "v1", 50000),
    Row("scripts/v1_5/finetune_task_lora.sh", *TASK, "lora", "zero3", 2e-4, 16, 1, "v1", 50000),
    Row("scripts/pretrain.sh", *OLD, "align", "zero2", 2e-3, 16, 1, "plain", 24000),
    Row("scripts/finetune.sh", *OLD, "finetune", "zero2", 2e-5, 16, 1, "v1", 50000),
    Row("scripts/finetune_full_schedule.sh", *OLD, "finetune", "zero2", 2e-5, 16, 1, "v1", 50000, epochs=3),
    Row("scripts/finetune_lora.sh", *OLD, "lora", "zero2", 2e-5, 16, 1, "v1", 50000),
    Row("scripts/finetune_qlora.sh", *OLD, "qlora", "zero2", 2e-5, 16, 1, "v1", 50000),
    Row("scripts/finetune_sqa.sh", "vicuna-13b-v1.3", *OLD[1:], "finetune", "zero2", 2e-5, 16, 1, "v1", 50000,
        epochs=12),
    Row("scripts/pretrain_xformers.sh", *OLD, "align", "zero2", 2e-3, 4, 4, "plain", 24000),
]  # fmt: skip


def recipe_of(script: str) -> Path:
    """Return the recipe that a script names."""
    text = (ROOT / script).read_text(encoding="utf-8")
    found = re.search(r"launch\.sh\" (\w+)|/recipes/(\w+)\.yaml\"", text)
    assert found is not None, script
    return ROOT / "recipes" / f"{found[1] or found[2]}.yaml"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.script)
def test_a_scripts_recipe_has_the_originals_hyperparameters(row: Row) -> None:
    config = load_recipe(recipe_of(row.script))
    model, run, optimizer = config.model, config.run, config.optimizer
    assert (Path(model.path).name, Path(str(model.vision_tower)).name) == (row.model, row.tower)
    assert (model.select_layer, model.projector_type, model.template) == (
        row.layer,
        row.projector,
        row.version,
    )
    assert (model.im_start_end, model.im_patch_token) == (False, False)
    assert (config.stage.name, run.deepspeed) == (row.stage, f"scripts/{row.zero}.json")
    batches = derive_batches(config, row.gpus)
    assert batches == (row.micro_batch * row.accumulation * row.gpus, row.micro_batch, row.accumulation)
    assert run.global_batch == batches.global_batch
    assert (optimizer.lr, optimizer.weight_decay, optimizer.warmup_ratio) == (row.lr, 0.0, 0.03)
    assert (optimizer.schedule, run.epochs, run.save_steps) == ("cosine", row.epochs, row.save_steps)
    assert (run.gradient_checkpointing, run.logging_steps, config.data.max_length) == (True, 1, 2048)
    is_full_precision = "xformers" in row.script
    assert (run.precision, run.tf32) == (("float32", False) if is_full_precision else ("bfloat16", True))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.script)
def test_a_scripts_recipe_has_the_rest_of_the_originals_row(row: Row) -> None:
    config = load_recipe(recipe_of(row.script))
    is_internvl = row.script.startswith("scripts_internvl")
    stem = Path(row.script).stem
    assert config.run.save_limit == (3 if is_internvl else 1)
    assert config.run.report_to == (("tensorboard",) if is_internvl else ("wandb",))
    assert config.data.num_workers == (32 if "_v1_" in stem else 2 if row.script == CUSTOM else 4)
    if is_internvl:
        assert config.run.output_dir == f"work_dirs/{stem}"
    pads = row.stage != "align" and (is_internvl or "v1_5" in row.script)
    assert config.data.image_aspect_ratio == ("pad" if pads else None)
    groups = pads and row.script != CUSTOM
    assert config.data.order.startswith("modality_length") == groups
    has_projector = row.stage != "align" and row.model != "llava-v1.5-13b"
    assert (config.model.projector is not None) == has_projector
    assert config.model.projector is None or config.model.projector.endswith("/mm_projector.bin")
    if row.stage == "lora" and "v1_5" in row.script:
        assert (config.stage.lora_r, config.stage.lora_alpha, config.stage.projector_lr) == (128, 256, 2e-5)
    elif row.stage in ("lora", "qlora"):
        assert (config.stage.lora_r, config.stage.lora_alpha, config.stage.projector_lr) == (64, 16, None)
    assert config.stage.bits == (4 if row.stage == "qlora" else 16)


def test_the_table_has_every_script_and_every_recipe_is_used() -> None:
    scripts = {
        path.relative_to(ROOT).as_posix()
        for folder in ("scripts", "scripts/v1_5", "scripts_internvl")
        for path in (ROOT / folder).glob("*.sh")
        if path.name not in ("launch.sh",) and ("pretrain" in path.name or "finetune" in path.name)
    }
    assert scripts == {row.script for row in ROWS}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    names = ("pretrain_", "finetune_", "llava_")
    theirs = {path for path in (ROOT / "recipes").glob("*.yaml") if path.name.startswith(names)}
    assert {recipe_of(script) for script in scripts} == theirs


def test_the_second_stage_takes_the_projector_that_the_first_wrote() -> None:
    for row in internvl():
        if row.stage == "finetune":
            first = load_recipe(recipe_of(row.script.replace("finetune_", "pretrain_")))
            second = load_recipe(recipe_of(row.script))
            assert second.model.projector == f"{first.run.output_dir}/mm_projector.bin"


@pytest.mark.parametrize("script", ["scripts/v1_5/finetune_task_lora.sh", CUSTOM])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_script_passes_its_options_on_from_any_folder(script: str, shell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "MODEL": "my model", "GPUS": "4"}
    command = [shell, str(ROOT / script), "--dry-run", "--run.seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "x 4 processes\n" in done.stdout
    assert "path: my model\n" in done.stdout
    assert "seed: 7\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_scripts_exit_code_and_log_are_the_trainings_own(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "GPUS": "1",
        "MODEL": str(tmp_path / "no-such-model"),
    }
    words = [
        "--run.deepspeed",
        "none",
        "--run.output_dir",
        "out",
        "--run.report_to",
        "none",
        "--run.device",
        "cpu",
    ]
    command = ["sh", str(ROOT / "scripts" / "pretrain.sh"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert "error[" in said
    assert "Traceback" not in said
    assert (tmp_path / "out" / "train.log").read_text() in said


def test_without_slurm_the_cluster_script_says_what_to_do(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", str(ROOT / CUSTOM)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "launch.sh" in done.stderr


def test_the_cluster_script_starts_a_task_for_each_gpu(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {
        "PATH": f"{fake.parent}:/usr/bin:/bin",
        "GPUS": "16",
        "SRUN_ARGS": "--time 1 -x n1",
        "META": "m",
    }
    command = ["sh", str(ROOT / CUSTOM), "--run.seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert {"--gres=gpu:8", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=10"} <= set(
        words
    )
    assert words[words.index("--time") : words.index("--time") + 4] == ["--time", "1", "-x", "n1"]
    assert words[-3:] == ["--data.meta=m", "--run.seed", "1"]


SHARED = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
}


@pytest.mark.parametrize(("name", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeeds_files_say_what_the_originals_say(name: str, stage: int) -> None:
    value = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    assert {key: value[key] for key in SHARED} == SHARED
    zero = value["zero_optimization"]
    assert zero["stage"] == stage
    assert (zero["overlap_comm"], zero["contiguous_gradients"], zero["sub_group_size"]) == (True, True, 1e9)
    assert ("stage3_max_live_parameters" in zero) == (stage == 3)
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) == (name == "zero3")
    assert ("offload_param" in zero) == ("scheduler" in value) == (name == "zero3_offload")


def test_the_mixture_has_the_originals_sets() -> None:
    value = json.loads((ROOT / "scripts_internvl" / "meta" / "custom_data.json").read_text())
    assert len(value) == 26
    assert all(
        set(entry) == {"root", "annotation", "data_augment", "repeat_time"} for entry in value.values()
    )
    assert [name for name, entry in value.items() if entry["repeat_time"] == 2] == ["okvqa_train_9k"]
