"""`llava plan`: parameters, memory, hours and disk of a run that is not started."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava import cli
from llava.errors import CheckpointError, ConfigError, UsageError
from llava.train.batch_sizes import derive_batches
from llava.train.config import ModelOptions, StageOptions, TrainConfig
from llava.train.forward import TrainingModel
from llava.train.planning.lengths import KNOWN, find_lengths
from llava.train.planning.machines import GIB, Machine, find_machine
from llava.train.planning.passes import MicroBatch, measure_pass
from llava.train.planning.prediction import Prediction, changed, largest_pass, predict
from llava.train.planning.proposals import propose
from llava.train.planning.shapes import count_parameters, find_shapes, meta_model
from llava.train.recipe import load_recipe
from llava.train.stages import part_rows
from tests.train.runs import RUNS, VICUNA, batch_for, options, ready

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
A100 = find_machine(["a100-80g", "x8"])
TIME_FACTOR = 1.8
"""Within which the four times of the original README are predicted: PEAK_SHARE comes from others."""
ORDER = ("qlora", "lora", "offload", "zero3", "fsdp", "checkpointing", "micro_tokens")[::-1]
"""Of proposals."""
README_HOURS = {
    # (recipe, language model): hours on 8 A100s
    ("llava_v1_5_pretrain", "7b"): 3.5,
    ("llava_v1_5_pretrain", "13b"): 5.5,
    ("llava_v1_5_finetune", "7b"): 10.0,
    ("llava_v1_5_finetune", "13b"): 20.0,
}


@functools.cache
def of_readme(recipe: str, size: str) -> Prediction:
    """Predict a recipe as the original trained: padded."""
    return planned(recipe, size=size, data={"packing": False})


def tiny(**sections: Any) -> Prediction:
    """Predict the fine-tuning of a tiny model on 8 devices, in bfloat16."""
    config = TrainConfig(model=options())
    run = {"global_batch": 128, "micro_batch": 16, "precision": "bfloat16"} | sections.pop("run", {})
    return predict_run(changed(config, data={"path": "llava_v1_5_mix665k.json"}, run=run, **sections))


def planned(recipe: str, machine: Machine = A100, *, size: str = "13b", **sections: Any) -> Prediction:
    config = load_recipe(RECIPES / f"{recipe}.yaml", {"model.path": f"lmsys/vicuna-{size}-v1.5"})
    return predict_run(changed(config, **sections), machine)


def predict_run(config: TrainConfig, machine: Machine = A100) -> Prediction:
    shapes = find_shapes(config.model)
    return predict(config, machine, shapes, find_lengths(config, shapes))


@pytest.mark.parametrize("stage", ["align", "finetune", "lora"])
def test_the_model_without_weights_learns_what_the_real_one_does(stage: Any) -> None:
    of_stage = StageOptions(name=stage, lora_r=4)
    real = ready(options(), of_stage).model
    empty = meta_model(find_shapes(options()), of_stage)
    assert part_rows(empty) == part_rows(real)
    assert all(parameter.is_meta for parameter in empty.parameters())
    counts = count_parameters(empty, of_stage)
    assert counts.total == sum(parameter.numel() for parameter in real.parameters())


@pytest.mark.parametrize(
    ("language", "tower", "layer", "billions"),
    [
        ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", -2, (6.74, 0.291)),
        ("pretrained/vicuna-13b-v1.5", "pretrained/InternViT-6B-448px-V1-5", -1, (13.02, 5.54)),
    ],
)
def test_released_models_that_are_not_here_have_their_published_sizes(
    language: str, tower: str, layer: int, billions: tuple[float, float]
) -> None:
    model = ModelOptions(path=language, vision_tower=tower, select_layer=layer, projector_type="mlp2x_gelu")
    stage = StageOptions()
    counts = count_parameters(meta_model(find_shapes(model), stage), stage)
    assert counts.language_model / 1e9 == pytest.approx(billions[0], rel=0.01)
    assert counts.vision / 1e9 == pytest.approx(billions[1], rel=0.03)


def test_a_model_that_nobody_knows_is_an_error_that_says_what_to_give() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json \(no weights needed\)"):
        find_shapes(ModelOptions(path="someone/new-model-3b"))
    with pytest.raises(CheckpointError, match=r"--model\.vision_tower FOLDER"):
        find_shapes(ModelOptions(path="lmsys/vicuna-7b-v1.5", vision_tower="google/siglip-so400m"))


def test_config_json_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((VICUNA / "config.json").read_text())
    shapes = find_shapes(replace(options(), path=str(tmp_path)))
    assert shapes.language["hidden_size"] == 64
    assert count_parameters(meta_model(shapes, StageOptions()), StageOptions()).total > 0


def test_data_that_is_here_is_measured_and_other_data_must_be_stated() -> None:
    data = {"path": str(RUNS / "finetune-data" / "data.json"), "image_folder": str(RUNS)}
    config = changed(TrainConfig(model=options()), data=data)
    shapes = find_shapes(config.model)
    found = find_lengths(config, shapes)
    assert found.num_samples == len(json.loads(Path(data["path"]).read_text()))
    assert found.longest is not None
    assert found.targets < found.text < found.longest
    absent = changed(config, data={"path": "elsewhere.json"})
    with pytest.raises(ConfigError, match="--samples"):
        find_lengths(absent, shapes)
    assert find_lengths(absent, shapes, num_samples=7, text=50).num_samples == 7


@pytest.mark.parametrize("stage", ["align", "finetune", "lora"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_pass_without_values_saves_what_a_real_one_does(stage: Any, checkpoints: bool) -> None:
    trainee = ready(options(), StageOptions(name=stage, lora_r=4))
    batch = batch_for(trainee)
    sizes = MicroBatch(1, batch.num_tokens, 1, batch.num_targets)
    assert trainee.rules is not None
    said = measure_pass(
        meta_model(find_shapes(options()), StageOptions(name=stage, lora_r=4)),
        sizes,
        image_size=trainee.rules.size,
        compute_dtype=torch.float32,
        trained_dtype=torch.float32,
        gradient_checkpointing=checkpoints,
    )
    kept = kept_by_forward(trainee, batch, checkpoints=checkpoints)
    # The peak is in the backward pass, when all that was kept is still there.
    assert kept < said.peak
    if stage == "align":
        assert said.peak < 2.5 * kept + 2e5


def kept_by_forward(trainee: Any, batch: Any, *, checkpoints: bool) -> int:
    """Return the bytes that a real forward pass keeps for the backward pass, weights aside."""
    from llava.model.packed_attention import use_packed_attention
    from llava.train.stages import enable_gradient_checkpointing

    use_packed_attention(trainee.model.model.language_model)
    if checkpoints:
        enable_gradient_checkpointing(trainee.model.model.language_model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainee.model.parameters()}
    sizes: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    module = TrainingModel(trainee.model, image_size=trainee.rules.size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(batch)
    return sum(sizes.values())


def test_checkpointing_and_shorter_passes_need_less() -> None:
    deep = {"learns": {"language_model": "all"}, "name": "custom"}
    plain = tiny(stage=deep).memory
    again = tiny(stage=deep, run={"gradient_checkpointing": True}).memory
    shorter = tiny(stage=deep, run={"gradient_checkpointing": True, "micro_tokens": 512}).memory
    assert plain.activations > 1.3 * again.activations  # of two layers, one is computed again at a time
    assert shorter.activations < again.activations / 2
    assert shorter.optimizer == again.optimizer


def test_each_engine_spreads_what_it_says() -> None:
    held = {}
    for name, run in {
        "ddp": {"deepspeed": None},
        "zero1": {"deepspeed": str(ROOT / "scripts" / "zero1.json")},
        "zero2": {"deepspeed": str(ROOT / "scripts" / "zero2.json")},
        "zero3": {"deepspeed": str(ROOT / "scripts" / "zero3.json")},
        "fsdp": {"deepspeed": None, "engine": "fsdp"},
        "offload": {"deepspeed": str(ROOT / "scripts" / "zero3_offload.json")},
    }.items():
        held[name] = tiny(run=run).memory
    trained = tiny().counts.trained
    assert held["ddp"].optimizer == 8 * trained
    assert held["zero1"].optimizer == trained
    assert held["ddp"].gradients == held["zero1"].gradients == 8 * held["zero2"].gradients
    assert held["zero3"].weights_trained < held["zero2"].weights_trained < held["ddp"].weights_trained
    assert held["fsdp"].weights_trained == trained // 2
    assert held["offload"].optimizer == 0
    assert held["offload"].host > 16 * trained
    assert held["offload"].peak < held["zero1"].peak < held["ddp"].peak


def test_quantised_weights_take_four_bits() -> None:
    whole, small = (tiny(stage={"name": name, "lora_r": 4}) for name in ("lora", "qlora"))
    assert small.counts.quantised == whole.counts.frozen - small.counts.frozen > 0
    assert small.memory.weights_quantised == pytest.approx(0.516 * small.counts.quantised, rel=0.01)
    assert whole.memory.weights_frozen == 2 * whole.counts.frozen
    assert small.memory.optimizer == whole.memory.optimizer


@pytest.mark.parametrize(
    ("recipe", "size", "machine"),
    [
        ("llava_v1_5_finetune", "7b", "a100-40g x8"),
        ("llava_v1_5_finetune", "13b", "a100-80g x8"),
        ("llava_v1_5_pretrain", "13b", "a100-80g x8"),
    ],
)
def test_what_the_original_trained_fits_where_it_did(recipe: str, size: str, machine: str) -> None:
    peak = of_readme(recipe, size).memory.peak
    usable = find_machine(machine.split()).usable
    assert 0.2 * usable < peak < usable


@pytest.mark.parametrize(("recipe", "size"), README_HOURS)
def test_the_readmes_hours_are_predicted_within_the_stated_factor(recipe: str, size: str) -> None:
    hours = of_readme(recipe, size).hours.hours
    assert hours is not None
    assert 1 / TIME_FACTOR < hours / README_HOURS[recipe, size] < TIME_FACTOR


def test_a_pass_is_filled_evenly_and_never_over_its_limit() -> None:
    config = load_recipe(RECIPES / "llava_v1_5_finetune.yaml")
    shapes = find_shapes(config.model)
    known = KNOWN["llava_v1_5_mix665k"]
    for limit in (2048, 4096, 32768):
        limited = changed(config, run={"micro_tokens": limit})
        batches = derive_batches(limited, 8)
        batch, num_passes, _ = largest_pass(limited, shapes, known, batches, 8)
        assert batch.positions <= limit
        assert num_passes * limit * 8 >= batches.global_batch * known.total(576, 2048)


def test_disk_holds_one_checkpoint_more_than_the_limit_while_one_is_written() -> None:
    scripts = {"deepspeed": str(ROOT / "scripts" / "zero2.json")}
    found = tiny(run={"save_steps": 100, "save_limit": 2, **scripts})
    assert found.disk.num_checkpoints == 3
    assert found.disk.checkpoint == 14 * found.counts.trained
    assert found.disk.final == 2 * found.counts.total


def test_what_cannot_fit_is_refused_and_what_does_is_proposed() -> None:
    config = TrainConfig(model=options())
    config = changed(config, data={"path": "llava_v1_5_mix665k.json"}, run={"global_batch": 128})
    shapes = find_shapes(config.model)
    lengths = find_lengths(config, shapes)
    # Smaller than any card: this model takes some MiB, beside what CUDA itself does.
    needed = predict(config, A100, shapes, lengths).memory.peak
    small = replace(A100, memory=int((needed + A100.reserved) / 2 / 0.94))
    assert "are needed on each device" in predict(config, small, shapes, lengths).shortage
    proposals = propose(config, small, lambda run: predict(run, small, shapes, lengths))
    assert proposals
    assert all(proposal.prediction.memory.peak <= small.usable for proposal in proposals)
    places = [
        max(place for place, word in enumerate(ORDER) if word in proposal.flags) for proposal in proposals
    ]
    assert places == sorted(places)
    assert len(set(places)) > 1


@pytest.mark.parametrize(
    ("words", "count", "gib"), [(["a100-80g", "x8"], 8, 80), (["h100"], 1, 80), (["l4-24g*2"], 2, 24)]
)
def test_machines_are_read(words: list[str], count: int, gib: int) -> None:
    found = find_machine(words)
    assert (found.num_devices, found.memory) == (count, gib * GIB)
    assert found.peak_flops


def test_a_machine_that_is_not_known_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Did you mean a100"):
        find_machine(["a10-80g"])
    with pytest.raises(UsageError, match="one of several"):
        find_machine(card="a100")
    assert find_machine(card="a100", gpus=8, memory_gib=80) == A100


def test_the_command_prints_a_prediction_and_refuses_with_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = str(RECIPES / "llava_v1_5_pretrain.yaml")
    assert cli.main(["plan", recipe, "--json", "--samples", "1000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["lengths"]["num_samples"] == 1000
    assert found["time"]["num_steps"] == 4
    assert cli.main(["plan", recipe, "--gpus", "1", "--memory", "16", "--gpu", "t4"]) == 2
    streams = capsys.readouterr()
    assert "does not fit" in streams.err.splitlines()[-1]
    assert "needed" in streams.err
    assert "what fits" in streams.out or "nothing that was tried fits" in streams.out
    assert cli.main(["plan", recipe, "--samples", "0"]) == 2
    assert "--samples is 0" in capsys.readouterr().err
