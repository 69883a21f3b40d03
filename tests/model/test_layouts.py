"""Our own format and the llava-hf layout: what is saved is loaded again to the bit, by us and by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, InternVLVisionConfig, LlamaConfig
from transformers import LlavaConfig as NativeConfig
from transformers import LlavaForConditionalGeneration as NativeLlava

from llava.errors import CheckpointError, ConfigError
from llava.model.builder import new_model
from llava.model.checkpoint import recognise
from llava.model.manifest import FILE_NAME, Manifest, read_manifest
from llava.model.saving import checkpoint_tensors, save_checkpoint
from llava.processing.pixels import imagenet_rules
from tests.model.folders import (
    ALL,
    BASE,
    CLIP,
    INTERNVIT,
    PROJECTOR_ONLY,
    SMALL_CLIP,
    SMALL_INTERNVIT,
    expected,
    load,
    loaded,
    pictures,
    small_config,
    weights_of,
)


def save(folder: Path, source: Path, **options: Any) -> Path:
    model = loaded(source)
    return save_checkpoint(
        folder,
        model=model.model,
        tokenizer=model.tokenizer,
        rules=model.image_processor.rules,
        **{"template": model.template} | options,
    )


@pytest.mark.parametrize("source", ALL, ids=lambda folder: folder.name)
def test_a_saved_checkpoint_is_the_same_model_and_needs_nothing_else(source: Path, tmp_path: Path) -> None:
    saved = save(tmp_path / "x", source, recipe={"epochs": 1}, parent="somewhere", base="vicuna")
    again, model = load(saved), loaded(source)
    state, again_state = model.model.state_dict(), again.model.state_dict()
    assert state.keys() == again_state.keys()
    assert all(torch.equal(state[name], again_state[name]) for name in state)
    assert again.checkpoint.kind == "own"
    assert again.template == model.template
    assert again.template_source == "llava.json"
    assert again.image_processor.rules == model.image_processor.rules
    assert again.im_start_end == model.im_start_end
    assert again.context_length == model.context_length
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    manifest = read_manifest(saved)
    assert manifest is not None
    assert (manifest.recipe, manifest.parent, manifest.base) == ({"epochs": 1}, "somewhere", "vicuna")


def test_saved_names_and_config_are_the_originals(tmp_path: Path) -> None:
    saved = save(tmp_path / "x", INTERNVIT)
    original = weights_of(INTERNVIT)
    tensors = load_file(saved / "model.safetensors")
    assert original.keys() <= tensors.keys()
    tower = "model.vision_tower.vision_tower."
    inside = {name.removeprefix(tower) for name in tensors if name.startswith(tower)}
    stored = load_file(INTERNVIT.parent / "towers" / "InternViT-6B-tiny-56px" / "model.safetensors")
    above = {name for name in stored if name.startswith(tuple(f"encoder.layers.{n}." for n in (3, 4, 5)))}
    assert inside == stored.keys() - above
    assert all(torch.equal(tensors[name], tensor.float()) for name, tensor in original.items())
    config = json.loads((saved / "config.json").read_text())
    given = json.loads((INTERNVIT / "config.json").read_text())
    changed = {name for name in given if name in config and config[name] != given[name]}
    assert changed == {"torch_dtype"}
    assert {name for name in given if name not in config} <= {
        "transformers_version",
        "tokenizer_padding_side",
        "attention_bias",
    }


def test_a_saved_checkpoint_may_be_halved_and_sharded(tmp_path: Path) -> None:
    saved = save(tmp_path / "x", CLIP, dtype=torch.float16, max_shard_bytes=200_000)
    assert len(list(saved.glob("model-*.safetensors"))) > 2
    model, again = loaded(CLIP), load(saved)
    # The fixture is stored in float16, so nothing is lost.
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_a_resampled_table_is_saved_as_it_is_used(tmp_path: Path) -> None:
    model = loaded(INTERNVIT, 84)
    saved = save_checkpoint(
        tmp_path / "x",
        model=model.model,
        tokenizer=model.tokenizer,
        rules=model.image_processor.rules,
        template="vicuna_v1",
    )
    again = load(saved)
    assert again.image_processor.rules.size == 84
    pixels = again.image_processor(pictures()[:1])
    with torch.no_grad():
        assert torch.equal(again.model.encode_images(pixels), model.model.encode_images(pixels))


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = save(tmp_path / "x", CLIP, template="llava_v0")
    before = (target / FILE_NAME).read_text()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Manifest, "write", fail)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path / "x", INTERNVIT)
    monkeypatch.undo()
    assert [item.name for item in tmp_path.iterdir()] == ["x"]
    assert (target / FILE_NAME).read_text() == before
    save(tmp_path / "x", INTERNVIT)
    assert recognise(target).config["mm_vision_select_layer"] == -4
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
        save(other, CLIP)


def test_a_manifest_is_read_strictly(tmp_path: Path) -> None:
    good = Manifest("vicuna_v1", imagenet_rules(336), {"model_type": "intern_vit_6b"})
    good.write(tmp_path)
    assert read_manifest(tmp_path) == good
    fields = json.loads((tmp_path / FILE_NAME).read_text())
    for change, hint in (
        ({"format_version": 2}, "newer"),
        ({"templates": "x"}, "'template'"),
        ({"image": None}, "image is missing"),
        ({"image": fields["image"] | {"sise": 3}}, "'size'"),
    ):
        (tmp_path / FILE_NAME).write_text(json.dumps(fields | change))
        with pytest.raises(ConfigError, match=hint):
            read_manifest(tmp_path)
    (tmp_path / FILE_NAME).write_text("3")
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_manifest(tmp_path)


def test_a_model_saves_itself_for_outside_code(tmp_path: Path) -> None:
    built = new_model(small_config(), SMALL_INTERNVIT, image_size=56, seed=0)
    built.save_pretrained(tmp_path / "x")
    assert recognise(tmp_path / "x").kind == "own"
    tensors = load_file(tmp_path / "x" / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in checkpoint_tensors(built))


def test_tied_heads_are_saved_once(tmp_path: Path) -> None:
    config = small_config(model_type="llava_qwen2", tie_word_embeddings=True)
    built = new_model(config, SMALL_CLIP, image_size=56, seed=0)
    tokenizer = loaded(CLIP).tokenizer
    rules = imagenet_rules(56)
    saved = save_checkpoint(
        tmp_path / "x", model=built, tokenizer=tokenizer, rules=rules, template="vicuna_v1"
    )
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")
    again = load(saved)
    assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
    assert torch.equal(again.model.lm_head.weight, built.lm_head.weight)


@pytest.mark.parametrize("tower", ["clip", "internvit"])
@pytest.mark.parametrize("layout", ["new", "old", "prefixed"])
def test_a_llava_hf_folder_computes_what_transformers_computes(
    tower: str, layout: str, tmp_path: Path
) -> None:
    vision: Any = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    )
    if tower == "internvit":
        vision = InternVLVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=56,
            norm_type="rms_norm",
            use_qk_norm=True,
        )
    text = LlamaConfig(
        vocab_size=1001,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    native = NativeLlava(
        NativeConfig(vision_config=vision, text_config=text, image_token_index=1000, image_seq_length=16)
    ).eval()
    folder = tmp_path / "x"
    native.save_pretrained(folder)
    if layout != "new":
        rename_as(layout, folder, tower)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((CLIP / name).read_bytes())
    model = load(folder)
    assert model.checkpoint.kind == "hf"
    pixels = torch.randn(1, 3, 56, 56)
    ids = torch.tensor([[1, 5, *[1000] * 16, 9, 7]])
    with torch.no_grad():
        theirs = native(input_ids=ids, pixel_values=pixels).logits
        ours = model.model(input_ids=torch.where(ids == 1000, -200, ids), pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def rename_as(layout: str, folder: Path, tower: str) -> None:
    """Rename a saved llava-hf checkpoint's tensors as older or newer transformers write them."""
    tensors = load_file(folder / "model.safetensors")
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        parts = name.removeprefix("model.")
        if parts.startswith("vision_tower.") and tower == "clip":
            inner = parts.removeprefix("vision_tower.").removeprefix("vision_model.")
            parts = f"vision_tower.vision_model.{inner}"
        if layout == "prefixed" and not parts.startswith("lm_head") and "language_model.lm_head" not in parts:
            parts = f"model.{parts.replace('language_model.model.', 'language_model.')}"
        renamed[parts.replace("language_model.lm_head", "lm_head") if layout == "prefixed" else parts] = (
            tensor
        )
    (folder / "model.safetensors").unlink()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def test_a_projector_checkpoint_becomes_whole_when_saved(tmp_path: Path) -> None:
    model = load(PROJECTOR_ONLY, base=str(BASE))
    saved = save_checkpoint(
        tmp_path / "x",
        model=model.model,
        tokenizer=model.tokenizer,
        rules=model.image_processor.rules,
        template=model.template,
    )
    ids = torch.tensor([expected(PROJECTOR_ONLY)[0]["ids_one"]])
    again = load(saved)
    pixels = again.image_processor(pictures()[:1])
    with torch.no_grad():
        assert torch.equal(
            again.model(input_ids=ids, images=pixels).logits, model.model(input_ids=ids, images=pixels).logits
        )
