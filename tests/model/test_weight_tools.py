"""Merging, consolidating and taking out projectors: the commands, end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.errors import LlavaError
from llava.model import consolidate
from llava.model.builder import LoadOptions, load_model
from llava.model.checkpoint import recognise
from scripts import extract_mm_projector, merge_lora_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKPOINTS = FIXTURES / "checkpoints"
LORA = FIXTURES / "training" / "lora" / "written"
BASE = CHECKPOINTS / "vicuna-f-base"


def _logits(path: Path, **options: str) -> torch.Tensor:
    loaded = load_model(path, LoadOptions(device="cpu", dtype="float32", **options))  # type: ignore[arg-type]
    ids = torch.tensor([[1, 5, -200, 17, 300]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(input_ids=ids, images=images).logits
    return logits


def test_a_merged_lora_checkpoint_answers_as_the_unmerged_one(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    arguments = ["--model-path", str(LORA), "--model-base", str(BASE), "--save-model-path", str(out)]
    assert merge_lora_weights.main([*arguments, "--dtype", "float32"]) == 0
    assert recognise(out).kind == "own"
    assert torch.equal(_logits(out), _logits(LORA, base=str(BASE)))


def test_the_merged_model_is_stored_in_the_bases_dtype(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    arguments = ["--model-path", str(LORA), "--model-base", str(BASE), "--save-model-path", str(out)]
    assert merge_lora_weights.main(arguments) == 0
    dtypes = {tensor.dtype for tensor in load_file(out / "model.safetensors").values()}
    assert dtypes == {torch.float16}


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    arguments = ["--model-path", str(LORA), "--save-model-path", str(out)]
    assert merge_lora_weights.main(arguments) == LlavaError.exit_code
    error = capsys.readouterr().err
    assert "--model-base" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llava-a-clip-mlp2x", "llava-b-internvit-mlp2x"])
def test_a_consolidated_checkpoint_has_the_same_tensors_in_safetensors(tmp_path: Path, name: str) -> None:
    shutil.copytree(CHECKPOINTS / "towers", tmp_path / "towers")
    out = tmp_path / "x"
    assert consolidate.main(["--src", str(CHECKPOINTS / name), "--dst", str(out)]) == 0
    stored = torch.load(CHECKPOINTS / name / "pytorch_model.bin", weights_only=True)
    written = load_file(out / "model.safetensors")
    assert set(written) == set(stored)
    assert all(torch.equal(written[key], tensor) for key, tensor in stored.items())
    assert torch.equal(_logits(out), _logits(CHECKPOINTS / name))


def test_consolidate_merges_a_projector_into_its_base_in_another_dtype(tmp_path: Path) -> None:
    out = tmp_path / "x"
    stage1 = CHECKPOINTS / "llava-f-stage1"
    options = ["--base", str(BASE), "--dtype", "float32"]
    assert consolidate.main(["--src", str(stage1), "--dst", str(out), *options]) == 0
    assert torch.equal(_logits(out), _logits(stage1, base=str(BASE)))


@pytest.mark.parametrize("file_name", ["mm_projector.bin", "mm_projector.safetensors"])
@pytest.mark.parametrize("source", ["full", "projector", "lora"])
def test_a_projector_is_taken_out_of_any_checkpoint(tmp_path: Path, source: str, file_name: str) -> None:
    folders = {
        "full": CHECKPOINTS / "llava-a-clip-mlp2x",
        "projector": CHECKPOINTS / "llava-f-stage1",
        "lora": LORA,
    }
    output = tmp_path / file_name
    assert extract_mm_projector.main(["--model-path", str(folders[source]), "--output", str(output)]) == 0
    is_bin = output.suffix == ".bin"
    tensors = torch.load(output, weights_only=True) if is_bin else load_file(output)
    assert set(tensors) == {
        f"model.mm_projector.{index}.{part}" for index in (0, 2) for part in ("weight", "bias")
    }


def test_a_checkpoint_without_projector_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model-path", str(BASE), "--output", str(tmp_path / "x.bin")]
    assert extract_mm_projector.main(arguments) == LlavaError.exit_code
    assert "no projector" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
