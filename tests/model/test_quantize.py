"""Quantised loading: exactly the language model's linear layers, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from llava.errors import ConfigError, DependencyError, UsageError
from llava.model import quantize
from llava.model.builder import LoadedModel, LoadOptions, load_model

bnb = pytest.importorskip("bitsandbytes")

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "checkpoints"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS: dict[int, Any] = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt}

# bitsandbytes says on every call that it multiplies in float16.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")


def _load(name: str, bits: Literal[4, 8] | None) -> LoadedModel:
    return _load_as(name, bits, "float32")


def _load_as(name: str, bits: Literal[4, 8] | None, dtype: str) -> LoadedModel:
    return load_model(CHECKPOINTS / name, LoadOptions(bits=bits, device="cpu", dtype=dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llava-a-clip-mlp2x", "llava-b-internvit-mlp2x"])
def test_exactly_the_linear_layers_of_the_language_model_are_quantised(
    name: str, bits: Literal[4, 8]
) -> None:
    model = _load(name, bits).model
    quantised = {key for key, module in model.named_modules() if isinstance(module, KINDS[bits])}
    num_layers = model.config.text_config.num_hidden_layers
    wanted = {
        f"model.language_model.layers.{index}.{'mlp' if layer[0] in 'gud' else 'self_attn'}.{layer}"
        for index in range(num_layers)
        for layer in LAYERS
    }
    assert quantised == wanted
    plain = dict(_load(name, None).model.named_parameters())
    for key, parameter in model.named_parameters():
        if key.removesuffix(".weight") not in wanted:
            assert torch.equal(parameter, plain[key]), key
            assert parameter.dtype is torch.float32
        else:
            assert parameter.dtype is (torch.uint8 if bits == 4 else torch.int8)


def test_four_bits_are_nf4_with_double_quantisation() -> None:
    layer = _load("llava-a-clip-mlp2x", 4).model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype is torch.float32


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1e-4), (8, 0.5)])
def test_a_quantised_model_computes_with_the_quantised_weights(bits: Literal[4, 8], tolerance: float) -> None:
    """4 bits are exactly a plain model with the rounded weights; 8 bits also round the activations."""
    quantised = _load("llava-a-clip-mlp2x", bits).model
    plain = _load("llava-a-clip-mlp2x", None).model
    for name in quantize.quantised_names(plain):
        layer, target = quantised.get_submodule(name), plain.get_submodule(name)
        with torch.no_grad():
            target.weight.copy_(_rounded(layer, bits))
    ids = torch.tensor([[1, 5, -200, 17, 300]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (
            quantised(input_ids=ids, images=images).logits - plain(input_ids=ids, images=images).logits
        )
    assert difference.abs().max() < tolerance


def _rounded(layer: nn.Module, bits: int) -> torch.Tensor:
    weight: Any = layer.weight
    if bits == 4:
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.data.float() * (weight.SCB[:, None].float() / 127)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_generates(bits: Literal[4, 8], dtype: str) -> None:
    loaded = _load_as("llava-b-internvit-mlp2x", bits, dtype)
    ids = torch.tensor([[1, 5, -200, 17, 300]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    answer = loaded.model.generate(ids, images=images, image_sizes=[(56, 56)], max_new_tokens=4)
    assert answer.shape[0] == 1
    assert 1 <= answer.shape[1] <= 4


def test_other_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="bits"):
        quantize.prepare(nn.Linear(2, 2), 3, compute_dtype=torch.float32)  # type: ignore[arg-type]


def test_a_device_without_quantised_layers_is_refused() -> None:
    model = nn.ModuleDict(
        {"model": nn.ModuleDict({"language_model": nn.ModuleDict({"q": nn.Linear(64, 64)})})}
    )
    quantize.prepare(model, 4, compute_dtype=torch.float32)
    with pytest.raises(UsageError, match="mps"):
        quantize.store(model, "model.language_model.q.weight", torch.ones(64, 64), torch.device("mps"))


def test_without_bitsandbytes_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DependencyError, match=r"pip install 'internvl-chat-llava\[quantize\]'"):
        quantize.prepare(nn.Linear(2, 2), 4, compute_dtype=torch.float32)
