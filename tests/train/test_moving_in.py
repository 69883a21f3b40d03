"""A user's way through training by the commands alone: from stage to stage, to a folder that chats."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import llava
from llava.cli import main as cli
from llava.train.train import main as train_py
from scripts.merge_lora_weights import main as merge
from tests.train.runs import CLIP_TOWER, INTERNVIT_TOWER, RUNS, SELECT_LAYER, VICUNA
from tests.train.test_replay import lines_of, written_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*MatMul8bitLt.*:UserWarning")

CAPTIONS = RUNS / "pretrain"
TALKS = RUNS / "finetune-data"
PICTURE = TALKS / "images" / "im00.png"
QUESTION = "What color is the model?"


def flags(output_dir: Path, *extra: str, tower: Path = INTERNVIT_TOWER, captions: bool = False) -> list[str]:
    """Return the original's command line for three steps; `extra` wins."""
    data = CAPTIONS if captions else TALKS
    return [
        *("--model_name_or_path", str(VICUNA), "--version", "plain" if captions else "v1"),
        *("--vision_tower", str(tower), "--mm_vision_select_layer", str(SELECT_LAYER[tower])),
        *("--mm_projector_type", "mlp2x_gelu", "--image_aspect_ratio", "pad", "--model_max_length", "512"),
        *("--data_path", str(data / "data.json"), "--image_folder", str(data / "images")),
        *("--per_device_train_batch_size", "4", "--learning_rate", "2e-3", "--max_steps", "3"),
        *(
            "--report_to",
            "none",
            "--use_cpu",
            "True",
            "--probe_samples",
            "0",
            "--output_dir",
            str(output_dir),
        ),
        *extra,
    ]


def recipe(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write a recipe for three steps; `sections` win field by field."""
    stated: dict[str, dict[str, Any]] = {
        "model": {
            "path": str(VICUNA),
            "vision_tower": str(INTERNVIT_TOWER),
            "select_layer": -4,
            "projector_type": "mlp2x_gelu",
        },
        "data": {
            "path": str(TALKS / "data.json"),
            "image_folder": str(TALKS / "images"),
            "image_aspect_ratio": "pad",
            "max_length": 512,
            "num_workers": 0,
        },
        "optimizer": {"lr": 2e-3},
        "run": {"global_batch": 4, "device": "cpu", "max_steps": 3, "probe_samples": 0},
    }
    for name, fields in sections.items():
        stated[name] = {**stated.get(name, {}), **fields}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(stated))
    return path


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines_of(folder)]


def answer(folder: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> str:
    """Ask a folder on the command line, and hold that the library says the same."""
    capsys.readouterr()
    asked = ["--image", str(PICTURE), "-p", QUESTION, "--max-new-tokens", "6"]
    assert cli(["chat", "--model", str(folder), "--device", "cpu", *asked, *extra]) == 0
    said = capsys.readouterr().out.strip()
    if not extra:
        assert llava.load(folder, device="cpu").ask(QUESTION, [PICTURE], max_new_tokens=6).strip() == said
    return said


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what stage 1 leaves."""
    folder = tmp_path_factory.mktemp("stage-1") / "first"
    assert train_py(flags(folder, "--tune_mm_mlp_adapter", "True", captions=True)) == 0
    return folder


def test_a_projector_is_trained_and_taken_on_from_wherever_it_lies(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = torch.load(aligned / "mm_projector.bin", weights_only=True)
    assert sorted(stored) == [f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")]
    first = {}
    for name, projector in {
        "folder": aligned,
        "file": aligned / "mm_projector.bin",
        "theirs": CAPTIONS / "written" / "mm_projector.bin",
    }.items():
        folder = tmp_path / name
        assert train_py(flags(folder, "--pretrain_mm_mlp_adapter", str(projector))) == 0
        first[name] = losses(folder)
    assert first["folder"] == first["file"] != first["theirs"]
    assert first["theirs"][2] < first["theirs"][0]
    moved = tmp_path / "my model"
    (tmp_path / "folder").rename(moved)
    answer(moved, capsys)


def test_stage_1_itself_chats(aligned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(aligned, capsys)


def test_adapters_chat_over_their_base_and_merged_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, merged = tmp_path / "adapters", tmp_path / "merged"
    assert train_py(flags(folder, "--lora_enable", "True", "--lora_r", "4", tower=CLIP_TOWER)) == 0
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "non_lora_trainables.bin",
    }
    said = answer(folder, capsys)
    assert merge(["--model-path", str(folder), "--save-model-path", str(merged), "--dtype", "float32"]) == 0
    assert not (merged / "adapter_config.json").exists()
    assert answer(merged, capsys) == said
    for base in (folder, merged):
        argv = flags(tmp_path / f"after {base.name}", "--model_name_or_path", str(base), tower=CLIP_TOWER)
        assert train_py(argv) == 0
    after = losses(tmp_path / "after adapters")
    assert losses(tmp_path / "after merged") == pytest.approx(after, rel=1e-5)
    assert after[0] < losses(folder)[0]


@pytest.mark.parametrize("bits", ["4", "8"])
def test_adapters_over_a_quantised_base_are_trained_gone_on_with_and_asked(
    bits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    calm, resumed = tmp_path / "calm", tmp_path / "resumed"
    options = ["--lora_enable", "True", "--bits", bits, "--lora_dropout", "0.1", "--save_steps", "1"]
    assert train_py(flags(calm, *options, "--save_total_limit", "9")) == 0
    resumed.mkdir()
    shutil.copytree(calm / "checkpoint-2", resumed / "checkpoint-2")
    assert train_py(flags(resumed, *options)) == 0
    assert_same_result(calm, resumed)
    assert losses(resumed) == losses(calm)[2:]
    answer(resumed, capsys, f"--load-{bits}bit")
    answer(resumed, capsys)


def assert_same_result(one: Path, other: Path) -> None:
    expected, found = written_weights(one), written_weights(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("stage", [["--lora_enable", "True"], []])
def test_going_on_after_a_checkpoint_changes_nothing(stage: list[str], tmp_path: Path) -> None:
    calm, resumed = tmp_path / "calm", tmp_path / "resumed"
    options = [*stage, "--lora_dropout", "0.2", "--save_steps", "1", "--save_total_limit", "9"]
    assert train_py(flags(calm, *options)) == 0
    for step in (1, 2):
        shutil.rmtree(resumed, ignore_errors=True)
        resumed.mkdir()
        shutil.copytree(calm / f"checkpoint-{step}", resumed / f"checkpoint-{step}")
        assert train_py(flags(resumed, *options)) == 0
        assert losses(resumed) == losses(calm)[step:]
        assert_same_result(calm, resumed)


def test_each_part_learns_as_a_recipe_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learns = {"vision": "last:1", "projector": "all", "language_model": "lora"}
    stage = {"name": "custom", "learns": learns, "lora_r": 4, "vision_lr": 1e-4}
    path = recipe(tmp_path, stage=stage)
    assert cli(["train", str(path), "--run.output_dir", str(tmp_path / "off")]) == 0
    assert "vision tower" in capsys.readouterr().err
    argv = ["train", str(path), "--run.gradient_checkpointing", "--run.output_dir", str(tmp_path / "on")]
    assert cli(argv) == 0
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    assert_same_result(tmp_path / "on", tmp_path / "off")
    tower = load_file(INTERNVIT_TOWER / "model.safetensors")
    written = written_weights(tmp_path / "on")
    assert any("lora_A" in name for name in written)
    changed = {
        name
        for name, value in tower.items()
        for key, now in written.items()
        if key.endswith(f"vision_tower.{name}") and not torch.equal(value.float(), now.float())
    }
    numbers = {name.split(".")[2] for name in changed if ".layers." in name}
    assert len(numbers) == 1
    answer(tmp_path / "on", capsys)


@pytest.mark.parametrize("stage", [["--tune_mm_mlp_adapter", "True"], [], ["--lora_enable", "True"]])
def test_the_position_table_learns_and_is_kept(
    stage: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tune_vit_pos_embedding", "True", *stage]
    assert train_py(flags(tmp_path / "off", *options)) == 0
    assert train_py(flags(tmp_path / "on", *options, "--gradient_checkpointing", "True")) == 0
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    before = load_file(INTERNVIT_TOWER / "model.safetensors")["embeddings.position_embedding"]
    tables = [
        value for name, value in written_weights(tmp_path / "on").items() if "position_embedding" in name
    ]
    assert tables
    assert all(not torch.equal(before.float(), table.float()) for table in tables)
    model = llava.load(tmp_path / "on", device="cpu").model
    loaded = model.get_parameter("model.vision_tower.embeddings.position_embeddings")
    assert torch.equal(loaded.float().flatten(), tables[0].float().flatten())
    answer(tmp_path / "on", capsys)


@pytest.mark.parametrize("name", ["align", "finetune", "lora"])
def test_gradient_checkpointing_changes_no_loss(name: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, stage={"name": name})
    for switch in ("true", "false"):
        argv = ["train", str(path), "--run.gradient_checkpointing", switch]
        assert cli([*argv, "--run.output_dir", str(tmp_path / switch)]) == 0
    assert losses(tmp_path / "true") == losses(tmp_path / "false")
    assert_same_result(tmp_path / "true", tmp_path / "false")


def test_a_recipe_is_shown_before_it_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    assert cli(["train", str(path), "--run.output_dir", str(tmp_path / "x"), "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["run"]["output_dir"] == str(tmp_path / "x")
    assert shown["optimizer"]["lr"] == 2e-3
    assert not (tmp_path / "x").exists()
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(shown))
    assert cli(["train", str(again)]) == 0
    assert len(losses(tmp_path / "x")) == 3


def test_mistakes_are_named_with_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_py(flags(tmp_path / "x", "--learning_rat", "1")) == 2
    assert "--learning_rate" in capsys.readouterr().err
    path = recipe(tmp_path, optimizer={"learning_rate": 1})
    line = path.read_text().splitlines().index("  learning_rate: 1") + 1
    assert cli(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"recipe.yaml line {line}" in said
    assert "optimizer.learning_rate" in said
    assert cli(["train", str(recipe(tmp_path)), "--run.max_step", "3"]) == 2
    assert "--run.max_steps" in capsys.readouterr().err
