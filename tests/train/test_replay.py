"""The original's recorded runs, replayed by its own command line: every loss, rate, norm and final weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava.train.train import main
from tests.train.runs import CHECKPOINTS, RUNS, VICUNA, base_of_runs

RELATIVE = 1e-4
ABSOLUTE = 1e-5


def recorded_command(name: str, output_dir: Path) -> list[str]:
    """Return a run's own flags with this machine's paths, and what makes it a replay."""
    argv = json.loads((RUNS / name / "args.json").read_text())["argv"]
    flags = dict(zip(argv[::2], argv[1::2], strict=True))
    data = RUNS / ("pretrain" if name == "pretrain" else "finetune-data")
    flags |= {
        "--model_name_or_path": str(VICUNA if name == "pretrain" else base_of_runs()),
        "--data_path": str(data / "data.json"),
        "--image_folder": str(data / "images"),
        "--vision_tower": str(CHECKPOINTS / "towers" / Path(flags["--vision_tower"]).name),
        "--output_dir": str(output_dir),
        "--replay": str(RUNS / name / "order.json"),
        "--init_weights": str(RUNS / name / "init.safetensors"),
        "--loss_reduction": "original",
    }
    if "--pretrain_mm_mlp_adapter" in flags:
        flags["--pretrain_mm_mlp_adapter"] = str(RUNS / "pretrain" / "written" / "mm_projector.bin")
    return [word for pair in flags.items() for word in pair]


def written_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor that a run left, under the names of its files."""
    weights: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    for path in folder.glob("*.bin"):
        weights |= torch.load(path, weights_only=True)
    return weights


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["pretrain", "finetune", "lora"])
def test_a_recorded_run_of_the_original_is_replayed(name: str, tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    assert main(recorded_command(name, output_dir)) == 0
    expected = json.loads((RUNS / name / "steps.json").read_text())["steps"]
    lines = lines_of(output_dir)
    assert [line["step"] for line in lines] == [step["step"] for step in expected]
    for ours, theirs in (("loss", "loss"), ("learning_rate", "lr"), ("grad_norm", "grad_norm")):
        wanted = [step[theirs] for step in expected]
        assert [line[ours] for line in lines] == pytest.approx(wanted, rel=RELATIVE), ours
    written = written_weights(output_dir)
    final = load_file(RUNS / name / "final.safetensors")
    for key, value in final.items():
        torch.testing.assert_close(
            written[key.replace(".default", "")].float(), value, rtol=0, atol=ABSOLUTE, msg=key
        )


def test_a_replay_of_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = recorded_command("finetune", tmp_path / "out")
    shuffled = tmp_path / "data.json"
    shuffled.write_text(json.dumps(json.loads((RUNS / "finetune-data" / "data.json").read_text())[::-1]))
    argv[argv.index("--data_path") + 1] = str(shuffled)
    assert main(argv) == 2
    assert "error[data]" in capsys.readouterr().err


def test_a_run_that_is_finished_does_not_train_again(tmp_path: Path) -> None:
    argv = recorded_command("pretrain", tmp_path / "out")
    assert main(argv) == 0
    before = written_weights(tmp_path / "out")
    assert main(argv) == 0
    after = written_weights(tmp_path / "out")
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert len(lines_of(tmp_path / "out")) == 12


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    argv = [*recorded_command("pretrain", output_dir), "--save_steps", "4"]
    assert main(argv) == 0
    before = written_weights(output_dir)
    newest = output_dir / "checkpoint-12"
    for path in (newest / "state").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    assert main(argv) == 0
    after = written_weights(output_dir)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [line["step"] for line in lines_of(output_dir)] == list(range(1, 13))


def test_going_on_with_other_data_or_another_stage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / "out"
    argv = recorded_command("finetune", output_dir)
    assert main(argv) == 0
    assert main([*argv, "--learning_rate", "1e-3"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    other = tmp_path / "other.json"
    records = json.loads((RUNS / "finetune-data" / "data.json").read_text())
    records[0]["conversations"][-1]["value"] += " Indeed."
    other.write_text(json.dumps(records))
    assert main([*argv, "--data_path", str(other)]) == 2
    assert "not what" in capsys.readouterr().err
    shutil.rmtree(output_dir)
