"""Device maps: blocks stay whole, devices are shared, and a spread model answers the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from llava.errors import ConfigError, UsageError
from llava.model import placement
from llava.model.builder import LoadOptions, load_model
from llava.model.modeling import LlavaForCausalLM
from llava.model.quantize import quantised_names

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


def _bytes_by_device(
    model: LlavaForCausalLM, device_map: Mapping[str, int | str], width: int = 4
) -> dict[int | str, int]:
    """Return how much is on each device; every parameter must be in exactly one part of the map."""
    used: dict[int | str, int] = {}
    for name, parameter in model.named_parameters():
        (part,) = [part for part in device_map if not part or f"{name}.".startswith(f"{part}.")]
        used[device_map[part]] = used.get(device_map[part], 0) + width * parameter.numel()
    return used


def _cut_parts(model: LlavaForCausalLM, device_map: Mapping[str, int | str]) -> set[str]:
    """Return the blocks, and the parts around them, that are on more than one device."""
    homes: dict[str, set[int | str]] = {}
    for name, _ in model.named_parameters():
        (part,) = [part for part in device_map if not part or f"{name}.".startswith(f"{part}.")]
        block = re.match(r".*\.layers?\.\d+\.", name)
        whole = re.match(r"model\.(vision_tower\.embeddings|multi_modal_projector)\.", name)
        match = block or whole
        if match is not None:
            homes.setdefault(match[0], set()).add(device_map[part])
    assert len(homes) > 5
    return {part for part, devices in homes.items() if len(devices) > 1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05])
@pytest.mark.parametrize("num_gpus", [0, 1, 2, 3])
def test_everything_is_placed_within_the_budgets_and_no_part_is_cut(
    name: str, share: float, num_gpus: int
) -> None:
    model = _model(name)
    room = int(share * 4 * sum(parameter.numel() for parameter in model.parameters()))
    budgets: dict[int | str, int] = dict.fromkeys([*range(num_gpus), "cpu"], room)
    device_map = placement.resolve(model, "auto", torch.float32, budgets=budgets)
    used = _bytes_by_device(model, device_map)
    assert all(used[device] <= room for device in used if device != "disk")
    assert not _cut_parts(model, device_map)
    if share > 1 and num_gpus > 0:
        assert set(used) <= set(range(num_gpus))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_gpus", [1, 2, 3])
def test_gpus_share_the_model_and_the_parts_follow_each_other(name: str, num_gpus: int) -> None:
    model = _model(name)
    budgets: dict[int | str, int] = dict.fromkeys([*range(num_gpus), "cpu"], 100 * MEGA)
    device_map = placement.resolve(model, "auto", torch.float32, budgets=budgets)
    used = _bytes_by_device(model, device_map)
    assert list(used) == list(range(num_gpus))
    assert min(used.values()) > 0.5 * sum(used.values()) / num_gpus


def test_what_the_gpus_cannot_hold_goes_to_memory_and_then_to_disk() -> None:
    model = _model(NAMES[0])
    budgets: dict[int | str, int] = {0: MEGA // 2, 1: MEGA // 2, "cpu": 3 * MEGA // 4}
    device_map = placement.resolve(model, "auto", torch.float32, budgets=budgets)
    assert list(_bytes_by_device(model, device_map)) == [0, 1, "cpu", "disk"]


def test_a_part_larger_than_every_device_goes_to_disk() -> None:
    model = _model(NAMES[0])
    device_map = placement.resolve(model, "auto", torch.float32, budgets={0: 10_000, "cpu": 10_000})
    assert placement.device_of(device_map, "lm_head.weight") == torch.device("cpu")
    assert "disk" in device_map.values()
    assert not _cut_parts(model, device_map)


def test_quantised_layers_count_as_fewer_bytes() -> None:
    model = _model(NAMES[0])
    linear = sum(model.get_parameter(f"{name}.weight").numel() for name in quantised_names(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    widths: dict[Literal[4, 8], float] = {4: 0.5, 8: 1.0}
    for bits, width in widths.items():
        needed = int(2 * (total - linear) + width * linear)
        fits = placement.resolve(model, "auto", torch.bfloat16, bits, budgets={0: needed + 1000, "cpu": MEGA})
        assert set(fits.values()) == {0}
        with pytest.raises(UsageError, match="does not fit"):
            placement.resolve(model, "auto", torch.bfloat16, bits, budgets={0: needed - 1000, "cpu": MEGA})


def test_a_quantised_model_is_not_offloaded() -> None:
    model = _model(NAMES[0])
    with pytest.raises(UsageError, match="does not fit"):
        placement.resolve(model, "auto", torch.bfloat16, 4, budgets={0: MEGA // 5, "cpu": 100 * MEGA})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "on_disk",
    [
        [""],
        ["model.vision_tower"],
        ["model.multi_modal_projector", "lm_head"],
        ["model.language_model.embed_tokens", "model.language_model.layers.1"],
    ],
    ids=lambda value: value[0] or "everything",
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
