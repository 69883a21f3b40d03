"""LoRA checkpoints: merged as peft merges, every tensor used, loaded with and without a base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llava.errors import CheckpointError, ConfigError, LlavaError, WeightsError
from llava.model.adapters import base_folder, base_name, merged_source
from llava.model.builder import LoadOptions, load_model
from llava.model.sources import TensorDict, TensorSource

FIXTURES = Path(__file__).parents[1] / "fixtures"
WRITTEN = FIXTURES / "training" / "lora" / "written"
BASE = FIXTURES / "checkpoints" / "vicuna-f-base"

# peft asks transformers under a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base of the fixture's run, as its README says."""
    folder = tmp_path / "vicuna-f-base with tokenizer-mt"
    shutil.copytree(BASE, folder)
    shutil.copytree(FIXTURES / "training" / "tokenizer-mt", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The LoRA folder that the original wrote, beside its tower, under a name that says nothing."""
    shutil.copytree(FIXTURES / "checkpoints" / "towers", tmp_path / "checkpoints" / "towers")
    return Path(shutil.copytree(WRITTEN, tmp_path / "x" / "y"))


def _config(folder: Path, **changes: object) -> dict[str, Any]:
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return config


def _base_tensors() -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(BASE / "pytorch_model.bin", weights_only=True)
    return tensors


def _read_all(source: TensorSource) -> dict[str, torch.Tensor]:
    return {key: source.read(key) for key in source.keys()}


def _peft_merged(adapter: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


def test_the_merge_of_the_originals_adapter_equals_pefts() -> None:
    source = merged_source(WRITTEN, _config_of(WRITTEN), TensorDict(_base_tensors()))
    merged = _read_all(source)
    reference = _peft_merged(WRITTEN).state_dict()
    assert set(reference) < set(merged)
    for key, tensor in reference.items():
        assert torch.allclose(merged[key].float(), tensor, atol=1e-6), key
        assert source.shape(key) == tuple(tensor.shape)
        assert source.dtype(key) == merged[key].dtype
    assert not torch.equal(
        merged["model.layers.0.mlp.up_proj.weight"],
        _base_tensors()["model.layers.0.mlp.up_proj.weight"].float(),
    )
    assert {key for key in merged if key not in reference} == {
        f"model.mm_projector.{index}.{part}" for index in (0, 2) for part in ("weight", "bias")
    }


def _config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


def test_a_lora_folder_answers_as_pefts_merged_model_does(base: Path, adapter: Path) -> None:
    loaded = load_model(adapter, LoadOptions(base=str(base), device="cpu", dtype="float32"))
    model = loaded.model
    assert loaded.checkpoint.kind == "lora"
    ids = torch.tensor([[1, 5, 17, -200, 300, 42, 9]])
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids, images=images).logits
        reference = _peft_merged(adapter)
        spliced = model.splice(ids, images)
        wanted = reference(inputs_embeds=spliced.inputs_embeds).logits
        text = torch.tensor([[1, 5, 17, 300]])
        assert torch.allclose(model(input_ids=text).logits, reference(input_ids=text).logits, atol=1e-5)
    assert torch.allclose(logits, wanted, atol=1e-5)
    projector = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
    loaded_projector = model.model.multi_modal_projector.state_dict()
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert torch.equal(loaded_projector[name], projector[f"base_model.model.model.mm_projector.{name}"])


@pytest.mark.parametrize("stated", ["beside", "parent", "absolute", "cwd"])
def test_without_a_base_the_one_that_the_adapter_names_is_found(
    base: Path, adapter: Path, stated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stated == "beside":
        shutil.move(base, adapter.parent / base.name)
    elif stated == "parent":
        _config(adapter, base_model_name_or_path=f"../{base.name}")
    elif stated == "absolute":
        _config(adapter, base_model_name_or_path=str(base))
    else:
        monkeypatch.chdir(base.parent)
    loaded = load_model(adapter, LoadOptions(device="cpu", dtype="float32"))
    assert any("adapter_config.json" in notice for notice in loaded.notices)


@pytest.mark.parametrize("stated", ["gone/away/vicuna", None, "", 3])
def test_a_base_that_cannot_be_found_is_asked_for(adapter: Path, stated: object) -> None:
    config = _config(adapter, base_model_name_or_path=stated)
    with pytest.raises(CheckpointError, match="--model-base"):
        base_folder(adapter, config, None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "mlp.*": 5}},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_safetensors", [True, False])
def test_every_plain_lora_option_merges_as_in_peft(
    tmp_path: Path, options: dict[str, Any], is_safetensors: bool
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=40,
        attention_bias=True,
    )
    base = LlamaForCausalLM(config).eval()
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    lora = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | options)
    tuned = get_peft_model(base, lora)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
                assert "lora_" in name or "bias" in name or "lm_head" in name
    tuned.save_pretrained(tmp_path, safe_serialization=is_safetensors)
    if not is_safetensors and (tmp_path / "adapter_model.safetensors").is_file():
        torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_model.safetensors").unlink()
    reference = tuned.merge_and_unload().state_dict()
    merged = _read_all(merged_source(tmp_path, _config_of(tmp_path), TensorDict(before)))
    assert set(merged) == set(reference)
    for key, tensor in reference.items():
        assert torch.allclose(merged[key], tensor, atol=1e-6), key


def test_a_transposed_base_is_merged_transposed(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, generator=generator), torch.randn(5, 2, generator=generator)
    save_file(
        {"base_model.model.h.c.lora_A.weight": a, "base_model.model.h.c.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"r": 2, "lora_alpha": 2, "fan_in_fan_out": True}
    weight = torch.randn(3, 5, generator=generator)
    merged = merged_source(tmp_path, config, TensorDict({"model.h.c.weight": weight}))
    assert torch.allclose(merged.read("model.h.c.weight"), weight + (b @ a).t())


def test_a_vocabulary_that_grew_in_training_comes_from_the_trainables(base: Path, adapter: Path) -> None:
    trainables = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        trainables[f"base_model.model.{name}"] = torch.randn(1002, 64, generator=generator)
    torch.save(trainables, adapter / "non_lora_trainables.bin")
    config = json.loads((adapter / "config.json").read_text())
    (adapter / "config.json").write_text(
        json.dumps(config | {"vocab_size": 1002, "mm_use_im_start_end": True})
    )
    loaded = load_model(adapter, LoadOptions(base=str(base), device="cpu", dtype="float32"))
    assert len(loaded.tokenizer) == 1002
    head = trainables["base_model.model.lm_head.weight"]
    assert torch.equal(loaded.model.lm_head.weight, head)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"peft_type": "LOHA"}, CheckpointError),
        ({"use_dora": True}, CheckpointError),
        ({"lora_bias": True}, CheckpointError),
        ({"r": 0}, ConfigError),
        ({"r": "8"}, ConfigError),
        ({"r": 4}, WeightsError),
        ({"lora_alpha": None}, ConfigError),
        ({"rank_pattern": {"(": 3}}, ConfigError),
    ],
    ids=str,
)
def test_an_adapter_that_cannot_be_merged_exactly_is_refused(
    adapter: Path, changes: dict[str, Any], error: type[LlavaError]
) -> None:
    with pytest.raises(error):
        merged_source(adapter, _config(adapter, **changes), TensorDict(_base_tensors()))


def test_every_adapter_tensor_must_be_used(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    base = TensorDict(_base_tensors())
    a_name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    broken = {
        "other half": {key: tensor for key, tensor in tensors.items() if key != a_name},
        "which the base has not": tensors
        | {
            "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(8, 64),
            "base_model.model.model.layers.9.mlp.up_proj.lora_B.weight": torch.ones(112, 8),
        },
        "no part of a LoRA pair": tensors
        | {a_name.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(1)},
        "has shape": tensors | {a_name: torch.ones(8, 65)},
        "holds model.extra": tensors | {"base_model.model.model.extra.weight": torch.ones(1)},
    }
    for message, changed in broken.items():
        save_file(changed, adapter / "adapter_model.safetensors")
        with pytest.raises(WeightsError, match=message):
            merged_source(adapter, _config_of(adapter), base)


def test_names_lose_what_peft_and_the_trainer_put_before_them() -> None:
    assert base_name("base_model.model.model.mm_projector.0.weight") == "model.mm_projector.0.weight"
    assert base_name("base_model.model.lm_head.weight") == "lm_head.weight"
    assert base_name("base_model.model.transformer.wte.weight") == "transformer.wte.weight"
    assert base_name("model.mm_projector.0.weight") == "model.mm_projector.0.weight"
