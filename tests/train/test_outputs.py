"""What a run leaves: folders that answer as the model in memory, and files that the original's tools read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM

from llava.errors import CheckpointError, FileError
from llava.model.builder import LoadOptions, load_model
from llava.model.checkpoint import recognise
from llava.model.merging import merge
from llava.train.config import ModelOptions, StageOptions
from llava.train.outputs import check_output, write_result
from llava.train.trainee import Trainee
from tests.train import runs
from tests.train.runs import CHECKPOINTS, CLIP_TOWER, INTERNVIT_TOWER, RUNS, VICUNA

FULL = CHECKPOINTS / "llava-a-clip-mlp2x"
LORA = StageOptions("lora", lora_r=4, lora_alpha=16, lora_dropout=0.0)
STAGES = {
    "align": StageOptions("align"),
    "align with positions": StageOptions("align", positions=True),
    "finetune": StageOptions(),
    "finetune, projector frozen": StageOptions(freeze_projector=True),
    "lora": LORA,
    "adapters and the tower's last layers": StageOptions(
        "custom", learns={"vision": "last:2", "projector": "all", "language_model": "lora"}, lora_r=4
    ),
    "adapters everywhere": StageOptions(
        "custom", learns={"vision": "lora", "projector": "all", "language_model": "lora"}, lora_r=4
    ),
    "adapters of the tower": StageOptions("custom", learns={"vision": "lora", "projector": "all"}, lora_r=4),
}

# peft asks transformers under a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def trained(model: ModelOptions, stage: StageOptions) -> Trainee:
    """Build, apply the stage and take two optimizer steps."""
    trainee = runs.ready(model, stage)
    runs.take_steps(trainee, stage, steps=2)
    return trainee


def written(folder: Path, trainee: Trainee, stage: StageOptions, **changes: Any) -> Path:
    """Write the result into a run's folder, beside what a run has written by then."""
    (folder / "checkpoint-8").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    fields: dict[str, Any] = {"state": None, "recipe": {"name": "r"}, "legacy_files": True}
    write_result(folder, trainee, stage, **fields | changes)
    assert (folder / "metrics.jsonl").is_file()
    assert not [item for item in folder.iterdir() if item.name.endswith(".part")]
    return folder


def answers(folder: Path, **options: Any) -> torch.Tensor:
    """Load a folder as a user does, and return its logits."""
    loaded = load_model(folder, LoadOptions(**{"device": "cpu", "dtype": "float32"} | options))
    return runs.logits(loaded)


@pytest.mark.parametrize("tower", [CLIP_TOWER, INTERNVIT_TOWER], ids=["clip", "internvit"])
@pytest.mark.parametrize("name", STAGES)
def test_a_written_folder_answers_as_the_model_in_memory(name: str, tower: Path, tmp_path: Path) -> None:
    stage = STAGES[name]
    trainee = trained(runs.options(tower, template="v1"), stage)
    folder = written(tmp_path / "name that says nothing", trainee, stage)
    wanted = runs.logits(trainee)
    assert torch.allclose(answers(folder), wanted, atol=1e-4)
    fresh = runs.logits(runs.ready(runs.options(tower), stage))
    assert not torch.allclose(fresh, wanted, atol=1e-2)
    loaded = load_model(folder, LoadOptions(device="cpu", dtype="float32"))
    assert (loaded.template.name, loaded.template_source) == ("vicuna_v1", "llava.json")
    assert loaded.num_image_tokens == trainee.num_image_tokens
    assert loaded.tokenizer("a picture").input_ids == trainee.tokenizer("a picture").input_ids


@pytest.mark.parametrize("name", ["finetune", "align", "lora"])
def test_llava_json_tells_recipe_and_base(name: str, tmp_path: Path) -> None:
    stage = STAGES[name]
    manifest = recognise(written(tmp_path / "x", runs.ready(runs.options(), stage), stage)).manifest
    assert manifest is not None
    assert (manifest.base, manifest.recipe, manifest.parent) == (str(VICUNA), {"name": "r"}, None)
    assert (tmp_path / "x" / "tokenizer.model").read_bytes() == (VICUNA / "tokenizer.model").read_bytes()


def test_the_state_given_is_what_is_written(tmp_path: Path) -> None:
    for name in ("finetune", "align", "lora"):
        stage = STAGES[name]
        trainee = trained(runs.options(), stage)
        state = {
            n: value.detach().clone() for n, value in trainee.model.named_parameters() if value.requires_grad
        }
        wanted = runs.logits(trainee)
        with torch.no_grad():
            for value in trainee.model.parameters():
                if value.requires_grad:
                    value.zero_()
        folder = written(tmp_path / name, trainee, stage, state=state)
        assert torch.allclose(answers(folder), wanted, atol=1e-4), name


def test_new_tokens_survive_each_stage(tmp_path: Path) -> None:
    one, two = StageOptions("align"), LORA
    aligned = trained(runs.options(im_start_end=True), one)
    first = written(tmp_path / "one", aligned, one)
    assert set(load_file(first / "mm_projector.safetensors")) >= {"model.embed_tokens.weight"}
    assert torch.allclose(answers(first), runs.logits(aligned), atol=1e-5)
    tuned = trained(runs.options(im_start_end=True, projector=str(first)), two)
    second = written(tmp_path / "two", tuned, two)
    assert torch.allclose(answers(second), runs.logits(tuned), atol=1e-4)
    ids = [1000, 1001]
    loaded = load_model(second, LoadOptions(device="cpu", dtype="float32"))
    assert loaded.im_start_end
    rows = load_file(first / "mm_projector.safetensors")["model.embed_tokens.weight"][ids]
    assert loaded.model.get_input_embeddings().weight[ids].equal(rows)


@pytest.mark.parametrize("form", ["folder", "mm_projector.safetensors", "mm_projector.bin"])
def test_stage_two_begins_with_what_stage_one_wrote(form: str, tmp_path: Path) -> None:
    stage = StageOptions("align", positions=True)
    aligned = trained(runs.options(INTERNVIT_TOWER), stage)
    folder = written(tmp_path / "one", aligned, stage)
    path = folder if form == "folder" else folder / form
    two = runs.ready(runs.options(INTERNVIT_TOWER, projector=str(path)), StageOptions())
    assert torch.allclose(runs.logits(two), runs.logits(aligned), atol=1e-6)


def test_an_adapter_over_a_whole_checkpoint_finds_the_tower_inside_it(tmp_path: Path) -> None:
    stage = StageOptions()
    whole = written(tmp_path / "whole", trained(runs.options(), stage), stage)
    for name in ("lora", "align"):
        trainee = trained(ModelOptions(path=str(whole)), STAGES[name])
        folder = written(tmp_path / name, trainee, STAGES[name])
        shutil.copytree(folder, tmp_path / "moved" / "y", dirs_exist_ok=True)
        assert torch.allclose(answers(folder), runs.logits(trainee), atol=1e-4)
        assert torch.allclose(
            answers(tmp_path / "moved" / "y", base=str(whole)), runs.logits(trainee), atol=1e-4
        )
        shutil.rmtree(tmp_path / "moved")


def test_a_checkpoint_that_went_on_learning_names_its_parent(tmp_path: Path) -> None:
    stage = StageOptions()
    folder = written(tmp_path / "x", trained(ModelOptions(path=str(FULL)), stage), stage)
    manifest = recognise(folder).manifest
    assert manifest is not None
    assert manifest.parent == str(FULL)


def _same_config(folder: Path, recorded: dict[str, Any]) -> None:
    """Compare with the original's config.json; ours may say more."""
    ours = json.loads((folder / "config.json").read_text())
    apart = {
        "architectures",  # the original forgot its own class: it says LlamaForCausalLM
        "transformers_version",
        "_name_or_path",
        "mm_vision_tower",
        "pretraining_tp",  # gone from transformers
    }
    for name in recorded.keys() - apart:
        assert ours[name] == recorded[name], name


def test_a_projector_folder_has_the_originals_file_and_keys(tmp_path: Path) -> None:
    stage = StageOptions("align")
    final = RUNS / "pretrain" / "init.safetensors"
    options = runs.options(INTERNVIT_TOWER, template="plain", init_weights=str(final))
    trainee = runs.ready(options, stage)
    folder = written(tmp_path / "x", trainee, stage)
    recorded = json.loads((RUNS / "pretrain" / "files.json").read_text())["keys"]["mm_projector.bin"]
    stored = torch.load(folder / "mm_projector.bin", weights_only=True)
    assert {name: [list(t.shape), str(t.dtype)] for name, t in stored.items()} == recorded
    assert all(tensor.equal(stored[name]) for name, tensor in load_file(final).items())
    assert recognise(folder).kind == "projector"


@pytest.mark.parametrize("run", ["pretrain", "lora"])
def test_config_json_says_what_the_originals_said(run: Any, tmp_path: Path) -> None:
    stage = StageOptions("align") if run == "pretrain" else LORA
    tower = INTERNVIT_TOWER if run == "pretrain" else CLIP_TOWER
    trainee = runs.ready(runs.options(tower, path=str(runs.base_of_runs())), stage)
    recorded = json.loads((RUNS / run / "written" / "config.json").read_text())
    # The recorded pretraining ran with square pictures, the helpers here pad.
    _same_config(written(tmp_path / "x", trainee, stage), recorded | {"image_aspect_ratio": "pad"})


def test_an_adapter_folder_has_the_originals_files(tmp_path: Path) -> None:
    stage = StageOptions("lora", lora_r=8, lora_alpha=16, lora_dropout=0.0)
    init = RUNS / "lora" / "init.safetensors"
    options = runs.options(
        CLIP_TOWER,
        path=str(runs.base_of_runs()),
        init_weights=str(init),
        base_name="vicuna-f-base with tokenizer-mt",
    )
    folder = written(tmp_path / "x", runs.ready(options, stage), stage)
    keys = json.loads((RUNS / "lora" / "files.json").read_text())["keys"]
    adapter = load_file(folder / "adapter_model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in adapter.items()} == {
        name: shape for name, (shape, _) in keys["adapter_model.safetensors"].items()
    }
    others = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    assert {n: [list(t.shape), str(t.dtype)] for n, t in others.items()} == keys["non_lora_trainables.bin"]
    begun = load_file(init)
    assert all(tensor.equal(begun[name]) for name, tensor in others.items())
    assert all(t.equal(begun[name.replace(".weight", ".default.weight")]) for name, t in adapter.items())
    recorded = json.loads((RUNS / "lora" / "written" / "adapter_config.json").read_text())
    ours = json.loads((folder / "adapter_config.json").read_text())
    assert ours | {"target_modules": sorted(ours["target_modules"])} == recorded | {
        "target_modules": sorted(recorded["target_modules"])
    }


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_peft_reads_the_adapter_as_it_was_trained(bias: Any, tmp_path: Path) -> None:
    base = runs.biased_base(tmp_path)
    stage = StageOptions("lora", lora_r=4, lora_dropout=0.0, lora_bias=bias)
    trainee = trained(runs.options(path=str(base)), stage)
    folder = written(tmp_path / "x", trainee, stage)
    assert torch.allclose(answers(folder), runs.logits(trainee), atol=1e-4)
    plain = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(folder)).eval()
    ids = torch.tensor([[1, 5, 17, 300]])
    with torch.no_grad():
        wanted = trainee.model.eval()(input_ids=ids).logits
        assert torch.allclose(adapted(input_ids=ids).logits, wanted, atol=1e-5)


def test_a_quantised_runs_adapter_lies_over_the_unquantised_base(tmp_path: Path) -> None:
    stage = StageOptions("qlora", bits=8, lora_r=4, lora_dropout=0.0)
    trainee = trained(runs.options(), stage)
    folder = written(tmp_path / "x", trainee, stage)
    near = answers(folder) - runs.logits(trainee)
    assert near.abs().max() < 0.5
    assert recognise(folder).kind == "lora"


def test_a_text_models_result_is_a_language_model(tmp_path: Path) -> None:
    stage = StageOptions()
    trainee = trained(ModelOptions(path=str(VICUNA)), stage)
    folder = written(tmp_path / "x", trainee, stage)
    assert recognise(folder).kind == "llm"
    loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for (name, ours), theirs in zip(trainee.model.named_parameters(), loaded.parameters(), strict=True):
        assert ours.equal(theirs), name
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == trainee.tokenizer("a").input_ids


def test_a_text_models_adapter_is_read_by_peft(tmp_path: Path) -> None:
    trainee = trained(ModelOptions(path=str(VICUNA)), LORA)
    folder = written(tmp_path / "x", trainee, LORA)
    adapted = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(VICUNA, dtype=torch.float32), str(folder)
    )
    ids = torch.tensor([[1, 5, 17, 300]])
    with torch.no_grad():
        assert torch.allclose(
            adapted.eval()(input_ids=ids).logits, trainee.model.eval()(input_ids=ids).logits, atol=1e-5
        )


def test_the_originals_place_for_a_checkpoints_projector_is_filled(tmp_path: Path) -> None:
    stage = StageOptions("align")
    trainee = runs.ready(runs.options(), stage)
    folder = written(tmp_path / "run" / "checkpoint-24", trainee, stage)
    beside = torch.load(tmp_path / "run" / "mm_projector" / "checkpoint-24.bin", weights_only=True)
    inside = torch.load(folder / "mm_projector.bin", weights_only=True)
    assert beside.keys() == inside.keys()
    written(tmp_path / "other", trainee, stage, legacy_files=False)
    assert not (tmp_path / "other" / "mm_projector.bin").exists()


def test_an_adapter_folder_can_be_merged_into_a_whole_model(tmp_path: Path) -> None:
    trainee = trained(runs.options(), LORA)
    folder = written(tmp_path / "x", trainee, LORA)
    merge(folder, tmp_path / "merged", dtype="float32")
    assert torch.allclose(answers(tmp_path / "merged"), runs.logits(trainee), atol=1e-4)


def test_a_half_written_folder_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = StageOptions()
    trainee = trained(runs.options(), stage)
    folder = written(tmp_path / "x", trainee, stage)

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("llava.model.saving.write_weights", fails)
        with pytest.raises(FileError, match="No space left"):
            written(folder, trainee, stage)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        recognise(folder)
    assert torch.allclose(answers(written(folder, trainee, stage)), runs.logits(trainee))


@pytest.mark.parametrize(("first", "second"), [("finetune", "lora"), ("lora", "finetune"), ("lora", "align")])
def test_a_folder_with_another_kind_of_result_is_refused_before_training(
    first: str, second: str, tmp_path: Path
) -> None:
    written(tmp_path / "x", runs.ready(runs.options(), STAGES[first]), STAGES[first])
    with pytest.raises(CheckpointError, match="another output_dir"):
        check_output(tmp_path / "x", runs.ready(runs.options(), STAGES[second]), STAGES[second])


def test_results_that_could_not_be_loaded_are_refused_before_training(tmp_path: Path) -> None:
    stage = StageOptions("custom", learns={"vision": "all"}, bits=4)
    with pytest.raises(CheckpointError, match="quantised"):
        check_output(tmp_path, runs.ready(runs.options(), stage), stage)
    adapter = written(tmp_path / "a", runs.ready(runs.options(), LORA), LORA)
    over = StageOptions("custom", learns={"projector": "all"})
    with pytest.raises(CheckpointError, match="Merge it first"):
        check_output(tmp_path / "b", runs.ready(ModelOptions(path=str(adapter)), over), over)
    whole = trained(ModelOptions(path=str(adapter)), StageOptions())
    folder = written(tmp_path / "c", whole, StageOptions())
    assert torch.allclose(answers(folder), runs.logits(whole), atol=1e-5)
