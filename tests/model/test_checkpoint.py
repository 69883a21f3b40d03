"""What a folder is: by content, under any name, with a clear word for everything that is not a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava.errors import CheckpointError, ConfigError, FileError, LlavaError
from llava.model.checkpoint import Kind, recognise
from llava.model.describing import describe
from llava.model.locating import tower_folder
from llava.model.saving import save_checkpoint
from tests.model.folders import (
    ALL,
    BASE,
    CLIP,
    INTERNVIT,
    PROJECTOR_ONLY,
    TOWERS,
    change_config,
    copied,
    expected,
    load,
    loaded,
    pictures,
    weights_of,
)

KINDS: list[tuple[Path, Kind]] = [
    *((folder, "full") for folder in ALL[:3]),
    (PROJECTOR_ONLY, "projector"),
    (BASE, "llm"),
    (TOWERS / "clip-tiny-56px", "tower"),
    (TOWERS / "InternViT-6B-tiny-56px", "tower"),
    (CLIP.parents[1] / "training" / "lora" / "written", "lora"),
]


@pytest.mark.parametrize(("folder", "kind"), KINDS, ids=lambda value: getattr(value, "name", value))
def test_a_folder_is_recognised_under_any_name(folder: Path, kind: Kind, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(folder, tmp_path / "x"))
    assert recognise(folder).kind == recognise(renamed).kind == kind


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_a_renamed_checkpoint_answers_the_same_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = copied(folder, tmp_path)
    monkeypatch.chdir("/")
    model = load(renamed, base=str(BASE) if folder == PROJECTOR_ONLY else None)
    reference = loaded(folder)
    pixels = model.image_processor(pictures()[:1])
    assert torch.equal(pixels, reference.image_processor(pictures()[:1]))
    ids = torch.tensor([expected(folder)[0]["ids_one"]])
    with torch.no_grad():
        logits = [one.model(input_ids=ids, images=pixels).logits for one in (model, reference)]
    assert torch.equal(logits[0], logits[1])
    assert model.template == reference.template


def test_an_internvit_checkpoint_gets_its_prompt_whatever_its_name(tmp_path: Path) -> None:
    shutil.copytree(TOWERS, tmp_path / "towers")
    folder = shutil.copytree(INTERNVIT, tmp_path / "mpt-llama-2-v1-plain")
    model = load(Path(folder))
    assert model.template.name == "vicuna_v1"
    assert "InternViT" in model.template_source


def test_our_own_and_delta_checkpoints_are_recognised(tmp_path: Path) -> None:
    model = loaded(CLIP)
    save_checkpoint(
        tmp_path / "own",
        model=model.model,
        tokenizer=model.tokenizer,
        rules=model.image_processor.rules,
        template="llava_v1",
    )
    assert recognise(tmp_path / "own").kind == "own"
    delta = copied(CLIP, tmp_path)
    (delta / "pytorch_model.bin").unlink()
    save_file({name: tensor * 0.01 for name, tensor in weights_of(CLIP).items()}, delta / "model.safetensors")
    assert recognise(delta).kind == "delta"
    with pytest.raises(CheckpointError, match="apply_delta"):
        load(delta)


@pytest.mark.parametrize("folder", [PROJECTOR_ONLY, BASE, TOWERS / "clip-tiny-56px"], ids=lambda f: f.name)
def test_half_a_model_is_an_error_that_says_what_is_missing(folder: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(folder, base=None)
    assert error.value.remedy
    assert "\n" not in str(error.value)


def test_a_base_for_a_whole_model_is_refused() -> None:
    with pytest.raises(LlavaError, match="whole model"):
        load(CLIP, base=str(BASE))


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        recognise(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        recognise(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileError, match="not JSON"):
        recognise(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        recognise(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "x"}))
    with pytest.raises(CheckpointError, match="neither weights nor"):
        recognise(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        recognise(tmp_path / "config.json")
    other = {"model_type": "qwen2_vl", "text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="not of this family"):
        recognise(tmp_path)


def test_a_missing_tower_is_an_error_that_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lonely = Path(shutil.copytree(CLIP, tmp_path / "x"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"clip-tiny-56px.*neither.* Put the tower"):
        load(lonely)


def test_a_hub_id_without_a_network_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hub") as error:
        recognise("nobody/nothing-at-all")
    assert "\n" not in str(error.value)


def test_a_relative_tower_is_looked_for_here_then_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "models" / "deep" / "x"
    for place in (tmp_path / "here" / "t", tmp_path / "models" / "t", checkpoint):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    assert tower_folder("t", checkpoint).resolve() == tmp_path / "here" / "t"
    monkeypatch.chdir("/")
    assert tower_folder("./t", checkpoint) == tmp_path / "models" / "t"
    assert tower_folder("./pretrained/t", checkpoint) == tmp_path / "models" / "t"


def test_values_of_config_json_that_nobody_knows_are_named(tmp_path: Path) -> None:
    changes: list[tuple[str, object, str]] = [
        ("mm_projector_type", "mlp2x_gelo", "mlp2x_gelu"),
        ("mm_projector_type", "two_mlp", "Allowed"),
        ("mm_vision_select_feature", "cls", "cls_patch"),
        ("image_aspect_ratio", "padd", "'pad'"),
        ("image_aspect_ratio", "anyres", "Allowed"),
        ("model_type", "llava_lama", "llava_llama"),
        ("mm_vision_select_layer", -9, "has 4 layers"),
        ("hidden_act", 3, "hidden_act"),
        ("vocab_size", 999, "1000 rows"),
    ]
    folder = copied(CLIP, tmp_path)
    original = (folder / "config.json").read_text()
    for field, value, hint in changes:
        (folder / "config.json").write_text(original)
        change_config(folder, **{field: value})
        with pytest.raises(ConfigError, match=hint) as error:
            load(folder)
        assert field in str(error.value)
        assert "\n" not in str(error.value)


def test_a_tower_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = copied(CLIP, tmp_path)
    tower = tmp_path / "towers" / "clip-tiny-56px"
    for change, hint in (
        ({"model_type": "siglip_vision_model"}, "siglip_vision_model"),
        ({"qllama_config": {}}, "InternVL-14B"),
    ):
        shutil.copy(TOWERS / tower.name / "config.json", tower / "config.json")
        change_config(tower, **change)
        with pytest.raises(ConfigError, match=hint):
            load(folder)


def test_describe_tells_what_a_checkpoint_is_without_loading_it() -> None:
    facts = describe(INTERNVIT)
    assert facts["kind"] == "full"
    assert facts["vision_tower"] == {
        "type": "InternViT",
        "layers": "3 of 6",
        "hidden_size": 80,
        "inside_checkpoint": False,
    }
    images = facts["images"]
    assert isinstance(images, dict)
    assert images["size"] == 56
    assert images["tokens_per_image"] == 16
    model = loaded(INTERNVIT).model
    parameters = facts["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["total"] == sum(parameter.numel() for parameter in model.parameters())
    json.dumps(facts)


@pytest.mark.parametrize(("folder", "kind"), KINDS, ids=lambda value: getattr(value, "name", value))
def test_describe_takes_every_kind(folder: Path, kind: Kind) -> None:
    facts = describe(folder)
    assert facts["kind"] == kind
    assert facts["files"]


@pytest.mark.parametrize(
    ("in_tower", "field", "value"),
    [
        (False, "num_attention_heads", 0),
        (False, "num_attention_heads", -1),
        (False, "hidden_act", "silly"),
        (False, "mm_projector_type", -1),
        (False, "rope_theta", []),
        (False, "pad_token_id", 10**9),
        (True, "num_hidden_layers", [1, 2]),
        (True, "num_attention_heads", 0),
        (True, "hidden_size", "wide"),
        (True, "hidden_act", 7),
    ],
)
def test_values_that_make_no_model_are_errors_of_one_line(
    in_tower: bool, field: str, value: object, tmp_path: Path
) -> None:
    folder = copied(CLIP, tmp_path)
    change_config(tmp_path / "towers" / "clip-tiny-56px" if in_tower else folder, **{field: value})
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert "\n" not in str(error.value)
