"""What learns: exactly the parts that a stage names, at their rates, and contradictions are refused."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llava.errors import ConfigError
from llava.train.config import OptimizerOptions, StageOptions
from llava.train.stages import (
    apply_stage,
    enable_gradient_checkpointing,
    parameter_groups,
    part_rows,
    rules_of,
    train_mode,
    trainable_table,
)
from tests.train import runs
from tests.train.runs import CLIP_TOWER, INTERNVIT_TOWER, RUNS

PROJECTOR = r"model\.multi_modal_projector\..*"
LANGUAGE = r"model\.language_model\..*|lm_head\..*"
TOWER = r"model\.vision_tower\.(?!post_layernorm).*"
ADAPTERS = r"model\.language_model\..*\.lora_[AB]\.default\.weight"
TABLE = r"model\.vision_tower\.embeddings\.(position_embeddings|position_embedding\.weight)"
# The towers have 3 layers below their taps.
LAST_TWO = r"model\.vision_tower\.encoder\.layers?\.[12]\..*"

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "align": ({"name": "align"}, PROJECTOR),
    "align with positions": ({"name": "align", "positions": True}, f"{PROJECTOR}|{TABLE}"),
    "finetune": ({"name": "finetune"}, f"{PROJECTOR}|{LANGUAGE}"),
    "finetune, projector frozen": ({"name": "finetune", "freeze_projector": True}, LANGUAGE),
    "finetune, language model frozen": ({"name": "finetune", "freeze_language_model": True}, PROJECTOR),
    "lora": ({"name": "lora"}, f"{PROJECTOR}|{ADAPTERS}"),
    "lora, projector frozen": ({"name": "lora", "freeze_projector": True}, ADAPTERS),
    "tower's last layers, adapters": (
        {"name": "custom", "learns": {"vision": "last:2", "projector": "all", "language_model": "lora"}},
        f"{LAST_TWO}|{PROJECTOR}|{ADAPTERS}",
    ),
    "whole tower": ({"name": "custom", "learns": {"vision": "all"}}, TOWER),
    "positions alone": ({"name": "custom", "learns": {"vision": "positions"}}, TABLE),
    "adapters of the tower": (
        {"name": "custom", "learns": {"vision": "lora"}},
        r"model\.vision_tower\..*\.lora_[AB]\.default\.weight",
    ),
    "last layer of the language model": (
        {"name": "custom", "learns": {"language_model": "last:1"}},
        r"model\.language_model\.layers\.1\..*",
    ),
}


@pytest.mark.parametrize("tower", [CLIP_TOWER, INTERNVIT_TOWER], ids=["clip", "internvit"])
@pytest.mark.parametrize("case", CASES)
def test_exactly_the_named_parts_change(tower: Path, case: str) -> None:
    fields, pattern = CASES[case]
    stage = StageOptions(**fields, lora_r=2)
    trainee = runs.ready(runs.options(tower), stage)
    before = runs.values(trainee.model)
    # B is zero at first, so A gets its first gradient in the second step.
    runs.take_steps(trainee, stage, steps=2)
    changed = {name for name, value in trainee.model.named_parameters() if not value.equal(before[name])}
    wanted = {name for name in before if re.fullmatch(pattern, name)}
    assert wanted
    # Rows of the embedding that no id names do not move, but the tensor as a whole does.
    assert changed == wanted


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_learns_through_adapters_alone(bits: int) -> None:
    stage = StageOptions(name="qlora", bits=bits, lora_r=2, lora_dropout=0.0)  # type: ignore[arg-type]
    trainee = runs.ready(runs.options(), stage)
    before = runs.values(trainee.model)
    losses = runs.take_steps(trainee, stage, steps=3)
    changed = {name for name, value in trainee.model.named_parameters() if not value.equal(before[name])}
    assert changed == {name for name in before if re.fullmatch(f"{PROJECTOR}|{ADAPTERS}", name)}
    assert losses[2] < losses[0]
    heavy = {
        name
        for name, m in trainee.model.named_modules()
        if type(m).__name__.startswith("Linear") and type(m) is not nn.Linear
    }
    assert heavy
    assert all(".language_model." in name for name in heavy)


def test_positions_of_the_tower_get_a_gradient_through_all_its_layers() -> None:
    stage = StageOptions(name="align", positions=True)
    trainee = runs.ready(runs.options(INTERNVIT_TOWER), stage)
    runs.training_model(trainee)(runs.batch_for(trainee)).total.backward()
    gradient = trainee.model.model.vision_tower.embeddings.position_embeddings.grad
    assert (gradient[0].norm(dim=-1) > 0).all()


def test_new_tokens_for_pictures_learn_while_the_projector_is_aligned() -> None:
    trainee = runs.ready(runs.options(im_start_end=True), StageOptions(name="align"))
    learning = {name for name, value in trainee.model.named_parameters() if value.requires_grad}
    assert "model.language_model.embed_tokens.weight" in learning
    assert "lm_head.weight" not in learning


@pytest.mark.parametrize(("bias", "count"), [("none", 0), ("lora_only", 6), ("all", 6)])
def test_biases_learn_beside_adapters_as_asked(tmp_path: Path, bias: Any, count: int) -> None:
    trainee = runs.ready(
        runs.options(path=str(runs.biased_base(tmp_path))), StageOptions("lora", lora_bias=bias)
    )
    learning = [name for name, value in trainee.model.named_parameters() if value.requires_grad]
    assert sum(name.endswith(".bias") and "language_model" in name for name in learning) == count
    assert not any("vision_tower" in name for name in learning)


def test_a_frozen_tower_is_in_evaluation_mode_and_a_learning_one_is_not() -> None:
    frozen = runs.ready(runs.options(), StageOptions())
    assert not frozen.model.model.vision_tower.training
    assert frozen.model.model.language_model.training
    frozen.model.train()
    train_mode(runs.training_model(frozen))
    assert not any(module.training for module in frozen.model.model.vision_tower.modules())
    learning = runs.ready(runs.options(), StageOptions("custom", learns={"vision": "last:1"}))
    assert learning.model.model.vision_tower.training


@pytest.mark.parametrize("name", ["align", "lora"])
def test_gradient_checkpointing_changes_no_gradient(name: Any) -> None:
    stage = StageOptions(name, lora_r=2, lora_dropout=0.0)
    gradients = []
    for is_checkpointed in (False, True):
        trainee = runs.ready(runs.options(), stage)
        if is_checkpointed:
            enable_gradient_checkpointing(trainee.model)
        runs.training_model(trainee)(runs.batch_for(trainee)).total.backward()
        gradients.append([p.grad for p in trainee.model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "align", "freeze_projector": True}, "freezes it"),
        ({"name": "lora", "freeze_language_model": True}, "freezes it"),
        ({"name": "finetune", "freeze_projector": True, "freeze_language_model": True}, "Nothing learns"),
        ({"name": "finetune", "bits": 4}, "own weights learn"),
        ({"name": "finetune", "learns": {"vision": "all"}}, "custom"),
        ({"name": "custom"}, "says nothing"),
        ({"name": "custom", "learns": {"tower": "all"}}, "'tower'"),
        ({"name": "custom", "learns": {"vision": "last:0"}}, "last:0"),
        ({"name": "custom", "learns": {"projector": "lora"}}, "'lora'"),
        ({"name": "custom", "learns": {"vision": "all"}, "freeze_projector": True}, "beside"),
        ({"name": "custom", "learns": {"vision": "none"}}, "Nothing learns"),
        ({"name": "lora", "lora_r": 0}, "lora_r is 0"),
        ({"name": "alignment"}, "align"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules_of(StageOptions(**fields), has_pictures=True)


@pytest.mark.parametrize(
    "fields",
    [{"name": "align"}, {"positions": True}, {"name": "custom", "learns": {"projector": "all"}}],
)
def test_a_language_model_alone_has_no_projector_to_train(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="language model alone"):
        rules_of(StageOptions(**fields), has_pictures=False)


def test_more_layers_than_there_are_is_an_error() -> None:
    stage = StageOptions("custom", learns={"vision": "last:9"})
    with pytest.raises(ConfigError, match="3 layers"):
        runs.ready(runs.options(), stage)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"freeze_projector": True, "projector_lr": 1e-4}, "projector_lr"),
        ({"vision_lr": 1e-4}, "vision_lr"),
        ({"lora_bias": "all"}, "lora_bias"),
    ],
)
def test_a_rate_without_effect_is_said(
    fields: dict[str, Any], flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="llava"):
        rules_of(StageOptions(**fields), has_pictures=True)
    assert f"{flag} has no effect" in caplog.text


@pytest.mark.parametrize("run", ["finetune", "lora"])
def test_groups_hold_what_transformers_put_into_them(run: Any) -> None:
    stage = StageOptions(run, lora_r=8)
    tower = CLIP_TOWER if run == "lora" else INTERNVIT_TOWER
    trainee = runs.ready(runs.options(tower), stage)
    groups = parameter_groups(runs.training_model(trainee), OptimizerOptions(weight_decay=0.1), stage)
    recorded = json.loads((RUNS / run / "args.json").read_text())["optimizer_groups"]
    for decay, group in zip((0.1, 0.0), recorded, strict=True):
        found = sum(len(own["params"]) for own in groups if own["weight_decay"] == decay)
        assert found == group["n_params"]


def test_each_part_has_its_own_rate_in_the_groups_and_in_the_table() -> None:
    stage = StageOptions(
        "custom",
        learns={"vision": "last:1", "projector": "all", "language_model": "all"},
        projector_lr=3e-4,
        vision_lr=5e-6,
    )
    trainee = runs.ready(runs.options(), stage)
    groups = parameter_groups(trainee.model, OptimizerOptions(lr=1e-5, weight_decay=0.1), stage)
    rates = {group["name"].partition("/")[0]: group["lr"] for group in groups}
    assert rates == {"vision": 5e-6, "projector": 3e-4, "language_model": 1e-5}
    grouped = [name for group in groups for name in group["names"]]
    learning = [name for name, value in trainee.model.named_parameters() if value.requires_grad]
    assert sorted(grouped) == sorted(learning)
    without = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    assert "model.language_model.norm.weight" in without
    assert "model.vision_tower.encoder.layers.2.layer_norm1.weight" in without
    assert "lm_head.weight" not in without
    table = trainable_table(trainee.model, groups)
    assert re.search(r"^projector +4 +8,320 +100\.00% +0\.0003$", table, re.MULTILINE)
    assert re.search(r"^vision tower +16 +33,[\d,]+ +\d+\.\d\d% +5e-06$", table, re.MULTILINE)


def test_the_table_counts_quantised_weights_whole() -> None:
    plain = part_rows(runs.ready(runs.options(), StageOptions("lora", lora_r=2)).model)
    packed = part_rows(runs.ready(runs.options(), StageOptions("qlora", lora_r=2)).model)
    assert plain == packed
    assert [row.parameters for row in plain if row.part.endswith("(LoRA)")] == [4160]


def test_what_learns_is_float32_and_what_is_frozen_is_not() -> None:
    stage = StageOptions("custom", learns={"vision": "last:1", "projector": "all", "language_model": "lora"})
    trainee = runs.ready(runs.options(), stage, dtype=torch.bfloat16)
    for name, value in trainee.model.named_parameters():
        assert value.dtype == (torch.float32 if value.requires_grad else torch.bfloat16), name
    losses = runs.take_steps(trainee, stage, steps=3)
    assert losses[2] < losses[0]


def test_applying_a_stage_to_float16_weights_makes_what_learns_float32() -> None:
    trainee = runs.built(runs.options(), StageOptions("align"), dtype=torch.bfloat16)
    apply_stage(trainee, StageOptions())
    assert trainee.model.lm_head.weight.dtype == torch.float32
