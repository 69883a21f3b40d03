"""The model to train: from bare parts or from any checkpoint, with the recorded runs' initial weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import CheckpointError, ConfigError, UsageError, WeightsError
from llava.model.builder import LoadOptions, load_model
from llava.model.saving import checkpoint_tensors
from llava.train.config import ModelOptions, StageOptions
from llava.train.trainee import Trainee
from tests.train import runs
from tests.train.runs import CHECKPOINTS, CLIP_TOWER, INTERNVIT_TOWER, RUNS, VICUNA

FULL = CHECKPOINTS / "llava-a-clip-mlp2x"
FULL_INTERNVIT = CHECKPOINTS / "llava-b-internvit-mlp2x"
STAGE_ONE = CHECKPOINTS / "llava-f-stage1"
RECORDED = {
    "pretrain": (StageOptions("align"), INTERNVIT_TOWER, "plain"),
    "finetune": (StageOptions("finetune"), INTERNVIT_TOWER, "v1"),
    "lora": (StageOptions("lora", lora_r=8, lora_alpha=16, lora_dropout=0.0), CLIP_TOWER, "v1"),
}


def recorded(run: str) -> Trainee:
    """Build the model of a recorded run with its initial weights."""
    stage, tower, template = RECORDED[run]
    init = RUNS / run / "init.safetensors"
    base = runs.base_of_runs() if run != "pretrain" else VICUNA
    options = runs.options(tower, path=str(base), template=template, init_weights=str(init))
    return runs.ready(options, stage)


def projector(trainee: Any) -> dict[str, torch.Tensor]:
    """Return the projector's weights."""
    state: dict[str, torch.Tensor] = trainee.model.model.multi_modal_projector.state_dict()
    return state


@pytest.mark.parametrize("run", RECORDED)
def test_every_weight_begins_as_in_the_originals_run(run: str) -> None:
    model = recorded(run).model
    sums = json.loads((RUNS / run / "init_sums.json").read_text())
    ours = {f"base_model.model.{name}": tensor for name, tensor in checkpoint_tensors(model)}
    ours |= {
        "base_model.model." + name.replace("model.language_model.", "model."): value.detach()
        for name, value in model.named_parameters()
        if ".lora_" in name
    }
    if run != "lora":
        ours = {name.removeprefix("base_model.model."): tensor for name, tensor in ours.items()}
    for name, tensor in ours.items():
        # The original's adapters sit inside its layers: `q_proj.base_layer.weight`.
        wanted = sums[name] if name in sums else sums[name.replace(".weight", ".base_layer.weight")]
        assert list(tensor.shape) == wanted["shape"], name
        assert tensor.double().sum().item() == pytest.approx(wanted["sum"], rel=1e-9, abs=1e-9), name
        assert tensor.double().norm().item() == pytest.approx(wanted["norm"], rel=1e-9), name
    # Left out are the tower's layers above the tap.
    trained = sum(entry["requires_grad"] for name, entry in sums.items() if "vision_tower" not in name)
    assert sum(value.requires_grad for value in model.parameters()) == trained


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    stage = StageOptions("lora", lora_r=2)
    made = []
    for seed in (1, 1, 2):
        torch.rand(3)
        made.append(runs.values(runs.ready(runs.options(), stage, seed=seed).model))
    assert all(made[0][name].equal(made[1][name]) for name in made[0])
    differing = {name for name in made[0] if not made[0][name].equal(made[2][name])}
    assert all("multi_modal_projector" in name or "lora_A" in name for name in differing)
    assert len(differing) == 4 + 14


def test_building_draws_nothing_from_the_shared_random_numbers() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    runs.ready(runs.options(), StageOptions("lora", lora_r=2))
    assert torch.rand(4).equal(wanted)


@pytest.mark.parametrize("folder", [FULL, FULL_INTERNVIT], ids=["clip", "internvit"])
def test_going_on_from_a_checkpoint_keeps_its_projector(folder: Path) -> None:
    trainee = runs.built(ModelOptions(path=str(folder)), StageOptions())
    loaded = load_model(folder, LoadOptions(device="cpu", dtype="float32"))
    wanted = loaded.model.state_dict()
    assert all(value.equal(wanted[name]) for name, value in trainee.model.state_dict().items())
    assert trainee.num_image_tokens == loaded.num_image_tokens


def test_a_checkpoint_may_be_given_with_its_tower() -> None:
    alone = runs.built(ModelOptions(path=str(FULL)), StageOptions())
    given = runs.built(ModelOptions(path=str(FULL), vision_tower=str(CLIP_TOWER)), StageOptions())
    assert given.model.state_dict().keys() == alone.model.state_dict().keys()
    assert all(v.equal(alone.model.state_dict()[n]) for n, v in given.model.state_dict().items())
    assert given.model.config.mm_vision_tower == str(CLIP_TOWER)


def test_a_projector_of_another_type_begins_anew_and_says_so() -> None:
    trainee = runs.built(ModelOptions(path=str(FULL), projector_type="linear"), StageOptions())
    assert set(projector(trainee)) == {"weight", "bias"}
    assert any("begins anew" in notice for notice in trainee.notices)


@pytest.mark.parametrize("given", ["folder", "bin", "safetensors", "whole"])
def test_stage_two_takes_a_trained_projector_from_any_file(given: str, tmp_path: Path) -> None:
    stored = torch.load(STAGE_ONE / "mm_projector.bin", weights_only=True)
    path = {"folder": STAGE_ONE, "bin": STAGE_ONE / "mm_projector.bin", "whole": FULL}.get(given)
    if given == "safetensors":
        path = tmp_path / "any.safetensors"
        save_file({f"base_model.model.{name}": tensor for name, tensor in stored.items()}, path)
    if given == "whole":
        stored = torch.load(FULL / "pytorch_model.bin", weights_only=True)
    trainee = runs.built(runs.options(projector=str(path)), StageOptions())
    assert all(
        value.equal(stored[f"model.mm_projector.{name}"].float())
        for name, value in projector(trainee).items()
    )


def test_a_stage_one_folder_says_which_tower_and_projector_type_it_is_for(tmp_path: Path) -> None:
    shutil.copytree(STAGE_ONE, tmp_path / "one")
    config = json.loads((STAGE_ONE / "config.json").read_text()) | {"mm_vision_tower": str(CLIP_TOWER)}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    options = ModelOptions(path=str(VICUNA), projector=str(tmp_path / "one"))
    model = runs.built(options, StageOptions()).model
    assert model.config.mm_projector_type == "mlp2x_gelu"
    assert model.config.mm_vision_select_layer == -2


def test_the_new_tokens_rows_are_the_mean_or_the_projector_files(tmp_path: Path) -> None:
    fresh = runs.built(runs.options(im_start_end=True), StageOptions())
    old = fresh.model.get_input_embeddings().weight[:1000]
    ids = fresh.tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    assert ids == [1000, 1001]
    rows = fresh.model.get_input_embeddings().weight[ids]
    # The mean is rounded as the base is stored, as it will be when the result is loaded.
    assert torch.allclose(rows, old.mean(0).half().float().expand(2, -1), atol=1e-4)
    assert torch.allclose(
        fresh.model.lm_head.weight[ids], fresh.model.lm_head.weight[:1000].mean(0).expand(2, -1), atol=1e-4
    )
    stored = torch.load(STAGE_ONE / "mm_projector.bin", weights_only=True)
    for count in (2, 1002):
        given = torch.randn(count, 64)
        torch.save(stored | {"model.embed_tokens.weight": given}, tmp_path / "p.bin")
        options = runs.options(im_start_end=True, projector=str(tmp_path / "p.bin"))
        table = runs.built(options, StageOptions()).model.get_input_embeddings().weight
        assert table[ids].equal(given[-2:])
        assert table[:1000].equal(old)


def test_the_patch_token_is_added_where_asked() -> None:
    trainee = runs.built(runs.options(im_patch_token=True, im_start_end=True), StageOptions())
    ids = trainee.tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"])
    assert ids == [1000, 1001, 1002]
    assert trainee.model.get_input_embeddings().weight.shape[0] == 1003


@pytest.mark.parametrize(("version", "pad"), [("v0", "[PAD]"), ("v0.5", "<unk>"), ("v1", "<unk>")])
def test_padding_follows_the_version(version: str, pad: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(VICUNA, tmp_path / "base"))
    (base / "special_tokens_map.json").unlink()
    trainee = runs.built(runs.options(path=str(base), template=version), StageOptions())
    assert trainee.tokenizer.pad_token == pad
    assert trainee.tokenizer.padding_side == "right"
    assert trainee.template.name == ("v0" if version.startswith("v0") else "vicuna_v1")
    table = trainee.model.get_input_embeddings().weight
    assert len(table) == 1000 + (pad == "[PAD]")
    assert torch.allclose(table[1000:], table[:1000].mean(0, keepdim=True), atol=1e-4)


def test_a_language_model_alone_trains_on_text() -> None:
    stage = StageOptions()
    trainee = runs.ready(ModelOptions(path=str(VICUNA)), stage)
    assert not trainee.has_pictures
    losses = runs.take_steps(trainee, stage, steps=3)
    assert losses[2] < losses[0]
    adapted = runs.ready(ModelOptions(path=str(VICUNA)), StageOptions("lora", lora_r=2))
    learning = [name for name, value in adapted.model.named_parameters() if value.requires_grad]
    assert len(learning) == 28
    assert all(".lora_" in name for name in learning)


def test_a_tower_folder_with_a_bigger_size_gives_more_features() -> None:
    trainee = runs.built(runs.options(INTERNVIT_TOWER, image_size=84), StageOptions())
    assert trainee.num_image_tokens == 36
    assert trainee.image_processor is not None
    assert trainee.image_processor.rules.size == 84


def test_what_a_sharded_run_needs_again_is_read_from_the_files() -> None:
    trainee = runs.built(runs.options(INTERNVIT_TOWER, im_start_end=True), StageOptions())
    assert trainee.read_again is not None
    for name, value in trainee.model.named_parameters():
        assert trainee.read_again(name).equal(value), name


@pytest.mark.parametrize(
    ("changes", "stage", "error", "message"),
    [
        ({"path": ""}, "finetune", ConfigError, "model.path"),
        ({"path": str(STAGE_ONE)}, "finetune", CheckpointError, "projector only"),
        ({"path": str(CLIP_TOWER)}, "finetune", CheckpointError, "vision tower alone"),
        ({"projector": str(CLIP_TOWER)}, "finetune", WeightsError, "no projector"),
        ({"projector_type": "mlp3x_relu"}, "finetune", ConfigError, "mlp3x_relu"),
        ({"template": "vicuna_v2"}, "finetune", ConfigError, "vicuna_v"),
        ({"init_weights": str(RUNS / "lora" / "init.safetensors")}, "finetune", UsageError, "adapters"),
        ({"init_weights": str(RUNS / "pretrain" / "init.safetensors")}, "finetune", WeightsError, "shape"),
        ({"init_weights": str(RUNS / "lora" / "init.safetensors")}, "lora", WeightsError, "lora_r"),
        ({"vision_tower": None, "im_start_end": True}, "finetune", ConfigError, "no vision tower"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], stage: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        runs.ready(runs.options(**changes), StageOptions(stage, lora_r=4))


def test_an_unknown_initial_weight_is_an_error(tmp_path: Path) -> None:
    init = load_file(RUNS / "lora" / "init.safetensors")
    for name in (
        "model.mm_resampler.weight",
        "base_model.model.model.layers.7.mlp.up_proj.lora_A.default.weight",
    ):
        save_file(init | {name: torch.zeros(8, 64)}, tmp_path / "init.safetensors")
        options = runs.options(init_weights=str(tmp_path / "init.safetensors"))
        with pytest.raises(WeightsError, match=r"mm_resampler|layers\.7"):
            runs.ready(options, StageOptions("lora", lora_r=8))


def test_a_tower_of_another_kind_than_the_one_inside_is_refused(tmp_path: Path) -> None:
    from llava.model.saving import save_checkpoint

    loaded = load_model(FULL_INTERNVIT, LoadOptions(device="cpu", dtype="float32"))
    assert loaded.model.image_processor is not None
    own = save_checkpoint(
        tmp_path / "own",
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        rules=loaded.model.image_processor.rules,
        template=loaded.template,
    )
    kept = runs.built(ModelOptions(path=str(own), vision_tower=str(INTERNVIT_TOWER)), StageOptions())
    assert (
        kept.model.model.vision_tower.state_dict().keys()
        == loaded.model.model.vision_tower.state_dict().keys()
    )
    with pytest.raises(ConfigError, match="another kind"):
        runs.built(ModelOptions(path=str(own), vision_tower=str(CLIP_TOWER)), StageOptions())
