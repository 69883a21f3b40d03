"""Delta weights: made and applied, they give the target back; what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import CheckpointError, FileError, LlavaError, WeightsError
from llava.model import apply_delta as apply_tool
from llava.model import make_delta as make_tool
from llava.model.builder import LoadOptions, load_model
from llava.model.checkpoint import recognise
from llava.model.delta import apply_delta, combine, make_delta
from llava.model.weights import WeightFiles

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "checkpoints"
BASE = CHECKPOINTS / "vicuna-f-base"
TARGET = CHECKPOINTS / "llava-d-clip-imstartend"


def _base_tensors() -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(BASE / "pytorch_model.bin", weights_only=True)
    return tensors


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A language model of the fixture's shape, with two vocabulary rows fewer."""
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def _tuned(folder: Path, dtype: torch.dtype, *, step: float = 0.001) -> Path:
    """A model that was trained a little from the base, with an MLP projector and two more rows."""
    shutil.copytree(TARGET, folder, ignore=shutil.ignore_patterns("*.bin"))
    projector = torch.load(CHECKPOINTS / "llava-f-stage1" / "mm_projector.bin", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, tensor in _base_tensors().items():
        tuned = tensor.float() + step * torch.randn(tensor.shape, generator=generator)
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            tuned = torch.cat([tuned, torch.randn(2, 64, generator=generator)])
        tensors[key] = tuned.to(dtype)
    tensors |= {key: tensor.to(dtype) for key, tensor in projector.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_applying_a_delta_gives_the_target_back(tmp_path: Path, base: Path, dtype: torch.dtype) -> None:
    target = _tuned(tmp_path / "target", dtype)
    exactness = make_delta(base, target, tmp_path / "delta")
    apply_delta(base, tmp_path / "delta", tmp_path / "again")
    wanted, found = (
        load_file(target / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert set(found) == set(wanted)
    max_error = 0.0
    for key, tensor in wanted.items():
        assert found[key].dtype is dtype
        max_error = max(max_error, float((found[key].double() - tensor.double()).abs().max()))
    assert max_error == exactness.max_error
    # Differences are below 0.01 here; rounding one moves it by half a unit in its last place.
    assert max_error <= 0.01 * torch.finfo(dtype).eps
    assert exactness.num_changed <= 0.005 * exactness.num_values


def test_a_delta_holds_differences_and_the_targets_own_projector_and_rows(tmp_path: Path, base: Path) -> None:
    target = load_file(_tuned(tmp_path / "target", torch.float16) / "model.safetensors")
    make_delta(base, tmp_path / "target", tmp_path / "delta")
    delta = load_file(tmp_path / "delta" / "model.safetensors")
    plain = _base_tensors()
    for key, tensor in delta.items():
        if "mm_projector" in key:
            assert torch.equal(tensor, target[key])
        else:
            rows = len(plain[key])
            assert torch.equal(tensor[rows:], target[key][rows:])
            difference = (target[key][:rows].float() - plain[key].float()).half()
            assert torch.equal(tensor[:rows], difference)


def test_config_and_tokenizer_are_the_targets(tmp_path: Path, base: Path) -> None:
    make_delta(base, _tuned(tmp_path / "target", torch.float16), tmp_path / "delta")
    (tmp_path / "delta" / "evil.py").write_text("raise SystemExit")
    apply_delta(base, tmp_path / "delta", tmp_path / "again")
    names = {path.name for path in TARGET.iterdir() if path.suffix != ".bin"}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names | {"model.safetensors"}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (TARGET / name).read_bytes()


def test_a_delta_is_recognised_and_the_result_loads(tmp_path: Path, base: Path) -> None:
    target = _tuned(tmp_path / "target", torch.float32)
    shutil.copytree(CHECKPOINTS / "towers", tmp_path / "towers")
    make_delta(base, target, tmp_path / "delta")
    assert recognise(tmp_path / "delta").kind == "delta"
    with pytest.raises(CheckpointError, match="apply_delta"):
        load_model(tmp_path / "delta", LoadOptions(device="cpu"))
    apply_delta(base, tmp_path / "delta", tmp_path / "again")
    model = load_model(tmp_path / "again", LoadOptions(device="cpu", dtype="float32")).model
    reference = load_model(target, LoadOptions(device="cpu", dtype="float32")).model
    ids = torch.tensor([[1, 5, 17, 300]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, reference(input_ids=ids).logits, atol=1e-6)


def test_half_precision_sums_equal_the_originals() -> None:
    """The original adds fp16 tensors: rounding the exact sum once is the same."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(100, 100, generator=generator).half()
    delta = (0.01 * torch.randn(100, 100, generator=generator)).half()
    assert torch.equal(combine(base, delta, 1), delta + base)


def test_a_whole_model_is_not_taken_for_a_delta_nor_a_delta_for_a_model(tmp_path: Path, base: Path) -> None:
    target = _tuned(tmp_path / "target", torch.float16)
    with pytest.raises(CheckpointError, match="whole model"):
        apply_delta(base, target, tmp_path / "out")
    make_delta(base, target, tmp_path / "delta")
    with pytest.raises(CheckpointError, match="delta already"):
        make_delta(base, tmp_path / "delta", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 64)}, "up_proj.weight has shape"),
        ({"model.embed_tokens.weight": torch.zeros(1002, 65)}, "embed_tokens.weight has shape"),
        ({"model.layers.7.mlp.up_proj.weight": torch.zeros(3)}, "layers.7.* is missing from the base"),
        ({"lm_head.weight": None}, "lm_head.weight is missing from the fine-tuned"),
        ({"model.norm.weight": None}, "no final norm"),
    ],
    ids=["shape", "width", "extra", "missing", "norm"],
)
def test_models_that_do_not_belong_together_are_refused(
    tmp_path: Path, base: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    target = _tuned(tmp_path / "target", torch.float16)
    tensors = load_file(target / "model.safetensors") | changes
    save_file(
        {key: value for key, value in tensors.items() if value is not None}, target / "model.safetensors"
    )
    with pytest.raises(WeightsError, match=message):
        make_delta(base, target, tmp_path / "delta")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "target"]


def test_an_old_checkpoints_rotary_buffers_are_no_obstacle(tmp_path: Path, base: Path) -> None:
    tensors = _base_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    torch.save(tensors, base / "pytorch_model.bin")
    make_delta(base, _tuned(tmp_path / "target", torch.float16), tmp_path / "delta")
    assert "inv_freq" not in " ".join(WeightFiles.open(tmp_path / "delta").keys())


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, base: Path) -> None:
    target = _tuned(tmp_path / "target", torch.float16)
    with pytest.raises(FileError, match="exists already"):
        make_delta(base, target, target)


def test_the_tools_take_the_originals_options(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, delta, again = (
        str(_tuned(tmp_path / "target", torch.float16)),
        str(tmp_path / "d"),
        str(tmp_path / "t"),
    )
    assert make_tool.main(["--base", str(base), "--target", target, "--delta", delta]) == 0
    assert "values back" in capsys.readouterr().out
    arguments = ["--base-model-path", str(base), "--target-model-path", again, "--delta-path", delta]
    assert apply_tool.main(arguments) == 0
    assert json.loads((tmp_path / "t" / "config.json").read_text())["mm_use_im_start_end"] is True
    assert apply_tool.main(arguments) == LlavaError.exit_code
    error = capsys.readouterr().err
    assert "exists already" in error
    assert error.count("\n") == 1
