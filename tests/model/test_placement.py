"""Device maps: blocks stay whole, devices are shared, and a spread model answers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llava.errors import ConfigError, UsageError
from llava.model import placement
from llava.model.builder import LoadOptions, load_model
from llava.model.modeling import LlavaForCausalLM

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "checkpoints"
NAMES = ("llava-a-clip-mlp2x", "llava-b-internvit-mlp2x")
MEGA = 1_000_000


def _model(name: str, device_map: Any = None) -> LlavaForCausalLM:
    options = LoadOptions(device="cpu", dtype="float32", device_map=device_map)
    return load_model(CHECKPOINTS / name, options).model


def _logits(model: LlavaForCausalLM) -> torch.Tensor:
    ids = torch.tensor([[1, 5, -200, 17, 300]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, images=images).logits
    return logits


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_part_and_blocks_are_parts(name: str) -> None:
    model = _model(name)
    sizes = placement.unit_sizes(model, torch.float32)
    for parameter, _ in model.named_parameters():
        assert sum(parameter.startswith(f"{unit}.") or parameter == unit for unit in sizes) == 1
    assert sum(sizes.values()) == 4 * sum(parameter.numel() for parameter in model.parameters())
    num_layers = model.config.text_config.num_hidden_layers
    assert {f"model.language_model.layers.{index}" for index in range(num_layers)} < set(sizes)
    assert {"model.language_model.embed_tokens", "model.multi_modal_projector", "lm_head"} < set(sizes)
    names = list(sizes)
    assert names[0] == "model.language_model.embed_tokens"
    assert names[-1] == "lm_head"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_gpus", [1, 2, 3])
def test_gpus_share_the_model_and_the_parts_follow_each_other(name: str, num_gpus: int) -> None:
    model = _model(name)
    budgets: dict[int | str, int] = dict.fromkeys([*range(num_gpus), "cpu"], 100 * MEGA)
    device_map = placement.resolve(model, "auto", torch.float32, budgets=budgets)
    devices = list(device_map.values())
    assert devices == sorted(devices, key=str)
    assert set(devices) == set(range(num_gpus))


def test_what_the_gpus_cannot_hold_goes_to_memory_and_then_to_disk() -> None:
    sizes = {f"layers.{index}": 10 for index in range(10)}
    placed = placement.place(sizes, {0: 25, 1: 25, "cpu": 30})
    assert list(placed.values()) == [0, 0, 1, 1, "cpu", "cpu", "cpu", "disk", "disk", "disk"]


def test_a_part_larger_than_every_device_goes_to_disk() -> None:
    assert placement.place({"a": 5, "b": 100, "c": 5}, {0: 50, "cpu": 60}) == {
        "a": 0,
        "b": "disk",
        "c": "disk",
    }


def test_four_bits_count_as_fewer_bytes_in_the_language_model_alone() -> None:
    model = _model(NAMES[0])
    plain = placement.unit_sizes(model, torch.bfloat16)
    small = placement.unit_sizes(model, torch.bfloat16, 4)
    for unit, size in plain.items():
        assert (small[unit] < size) == unit.startswith("model.language_model.layers."), unit


def test_a_quantised_model_is_not_offloaded() -> None:
    model = _model(NAMES[0])
    with pytest.raises(UsageError, match="does not fit"):
        placement.resolve(model, "auto", torch.bfloat16, 4, budgets={0: MEGA // 5, "cpu": 100 * MEGA})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "on_disk",
    [
        ["model.vision_tower"],
        ["model.multi_modal_projector", "lm_head"],
        ["model.language_model.embed_tokens", "model.language_model.layers.1"],
    ],
    ids=lambda value: value[0],
)
def test_a_model_partly_on_disk_answers_the_same(name: str, on_disk: list[str]) -> None:
    device_map = {"": "cpu"} | dict.fromkeys(on_disk, "disk")
    spread = _model(name, device_map)
    assert any(parameter.is_meta for parameter in spread.parameters())
    assert torch.equal(_logits(spread), _logits(_model(name)))
    ids = torch.tensor([[1, 5, 17, 300]])
    assert (
        spread.generate(ids, max_new_tokens=3).tolist()
        == _model(name).generate(ids, max_new_tokens=3).tolist()
    )


@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu", {"": "cpu"}])
def test_maps_onto_one_device_load_as_without_a_map(device_map: Any) -> None:
    if torch.cuda.is_available() and device_map in ("auto", "balanced"):
        pytest.skip("takes the GPU here")
    assert torch.equal(_logits(_model(NAMES[0], device_map)), _logits(_model(NAMES[0])))


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": 0, "model.language_model.layers.0.mlp": 1}, r"cuts model\.language_model\.layers\.0 in two"),
        ({"model": "cpu"}, "nothing about lm_head"),
        ({"": "cpu", "model.tower": "cpu"}, "device_map key"),
        ({"": "gpu"}, "device in device_map"),
        ({"": -1}, "device in device_map"),
        ({"": True}, "device in device_map"),
        ("gpu", "device in device_map"),
    ],
)
def test_a_wrong_map_is_refused(device_map: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placement.resolve(_model(NAMES[0]), device_map, torch.float32)


def test_parameters_go_where_the_longest_name_says() -> None:
    device_map: dict[str, int | str] = {"": "cpu", "model": 1, "model.a": "disk", "model.ab": "cuda:2"}
    assert placement.device_of(device_map, "lm_head.weight") == torch.device("cpu")
    assert placement.device_of(device_map, "model.x") == torch.device("cuda", 1)
    assert placement.device_of(device_map, "model.a.w") == torch.device("cpu")
    assert placement.device_of(device_map, "model.ab.w") == torch.device("cuda", 2)
