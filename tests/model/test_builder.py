"""Loading: strict weights, towers inside and beside, picture sizes from content, tokens, templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import ConfigError, LlavaError, WeightsError
from llava.model.builder import LoadOptions, load_pretrained_model
from llava.model.checkpoint import recognise
from llava.model.mapping import TOWER_PREFIX
from llava.model.tower_finding import find_tower
from llava.model.towers import resize_positions
from llava.processing.image_rules import IMAGENET_MEAN
from tests.model.folders import (
    BASE,
    CLIP,
    IM_START_END,
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

CLIP_TOWER = "clip-tiny-56px"
INTERNVIT_TOWER = "InternViT-6B-tiny-56px"


def rewritten(folder: Path, target: Path, **changes: torch.Tensor | None) -> Path:
    """Copy a fixture with tensors changed or (None) removed, as safetensors."""
    copy = copied(folder, target)
    tensors = weights_of(folder) | changes
    (copy / "pytorch_model.bin").unlink()
    save_file({k: t for k, t in tensors.items() if t is not None}, copy / "model.safetensors")
    return copy


def with_tower_inside(folder: Path, target: Path, tower: str, **changes: torch.Tensor) -> Path:
    tensors = load_file(TOWERS / tower / "model.safetensors") | changes
    return rewritten(folder, target, **{TOWER_PREFIX + name: tensor for name, tensor in tensors.items()})


def logits_of(model: Any, folder: Path) -> torch.Tensor:
    ids = torch.tensor([expected(folder)[0]["ids_one"]])
    with torch.no_grad():
        logits: torch.Tensor = model.model(input_ids=ids, images=model.image_processor(pictures()[:1])).logits
    return logits


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "missing model.language_model.layers.1.mlp.up_proj"),
        ("model.mm_projector.2.bias", None, "no projector"),
        ("model.layers.9.mlp.up_proj.weight", torch.zeros(2), r"unexpected model\.layers\.9"),
        ("model.norm.weight", torch.ones(63), r"model.norm.weight has shape \[63\] and not \[64\]"),
        ("model.image_newline", torch.zeros(64), "unexpected model.image_newline"),
        ("lm_head.weight", torch.zeros(1001, 64), "lm_head.weight has shape"),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    name: str, tensor: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        load(rewritten(CLIP, tmp_path, **{name: tensor}))
    assert "\n" not in str(error.value)


def test_tensors_that_are_computed_may_be_there(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    model = load(rewritten(CLIP, tmp_path, **extra))
    assert torch.equal(logits_of(model, CLIP), logits_of(loaded(CLIP), CLIP))


def test_a_truncated_file_is_a_weights_error(tmp_path: Path) -> None:
    folder = rewritten(CLIP, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        load(folder)


@pytest.mark.parametrize(
    ("folder", "tower"), [(CLIP, CLIP_TOWER), (INTERNVIT, INTERNVIT_TOWER)], ids=["clip", "internvit"]
)
def test_a_tower_inside_the_checkpoint_is_used(folder: Path, tower: str, tmp_path: Path) -> None:
    model = load(with_tower_inside(folder, tmp_path, tower))
    assert torch.equal(logits_of(model, folder), logits_of(loaded(folder), folder))
    assert any("inside the checkpoint" in notice for notice in model.notices)
    assert not any("differs" in notice for notice in model.notices)


def test_a_tower_inside_wins_and_a_difference_is_said(tmp_path: Path) -> None:
    name = "encoder.layers.0.ls1"
    changed = load_file(TOWERS / INTERNVIT_TOWER / "model.safetensors")[name] + 1
    model = load(with_tower_inside(INTERNVIT, tmp_path, INTERNVIT_TOWER, **{name: changed}))
    inside = model.model.model.vision_tower.encoder.layer[0].lambda_1
    assert torch.equal(inside, changed.float())
    assert any("differs" in notice for notice in model.notices)


def test_layers_above_the_tap_are_neither_built_nor_needed(tmp_path: Path) -> None:
    folder = copied(INTERNVIT, tmp_path)
    assert len(loaded(INTERNVIT).model.model.vision_tower.encoder.layer) == 3
    assert len(loaded(CLIP).model.model.vision_tower.encoder.layers) == 3
    file = tmp_path / "towers" / INTERNVIT_TOWER / "model.safetensors"
    tensors = {
        name: tensor
        for name, tensor in load_file(file).items()
        if not name.startswith(("encoder.layers.3", "encoder.layers.4", "encoder.layers.5"))
    }
    save_file(tensors, file)
    assert torch.equal(logits_of(load(folder), INTERNVIT), logits_of(loaded(INTERNVIT), INTERNVIT))


@pytest.mark.parametrize(
    ("num_positions", "is_inside", "size"),
    [(577, True, 336), (1025, True, 448), (257, True, 336), (257, False, 336), (1025, False, 448)],
)
def test_the_size_of_an_internvit_comes_from_its_table(
    num_positions: int, is_inside: bool, size: int, tmp_path: Path
) -> None:
    tensors = load_file(TOWERS / INTERNVIT_TOWER / "model.safetensors")
    table = resize_positions(tensors["embeddings.position_embedding"], num_positions)
    changes = {"embeddings.position_embedding": table}
    if is_inside:
        folder = with_tower_inside(INTERNVIT, tmp_path, INTERNVIT_TOWER, **changes)
    else:
        folder = copied(INTERNVIT, tmp_path)
        save_file(tensors | changes, tmp_path / "towers" / INTERNVIT_TOWER / "model.safetensors")
    model = load(folder)
    assert model.image_processor.rules.size == size
    assert model.num_image_tokens == (size // 14) ** 2
    assert load(folder, image_size=112).image_processor.rules.size == 112


def test_a_preprocessor_config_in_the_checkpoint_decides_the_size(tmp_path: Path) -> None:
    folder = copied(INTERNVIT, tmp_path)
    rules = {"crop_size": 70, "size": 70, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(rules))
    model = load(folder)
    assert model.image_processor.rules.size == 70
    assert model.image_processor.rules.mean == (0.5, 0.5, 0.5)
    assert model.image_processor.rules.aspect == "pad"


@pytest.mark.parametrize("is_inside", [True, False])
def test_the_preprocessor_config_of_an_internvit_alone_decides_nothing(
    is_inside: bool, tmp_path: Path
) -> None:
    # It is for the tower by itself: a 224-pixel tower says 224, and InternVL-Chat V1.0 uses it at 336.
    tensors = load_file(TOWERS / INTERNVIT_TOWER / "model.safetensors")
    changes = {
        "embeddings.position_embedding": resize_positions(
            tensors["embeddings.position_embedding"], 577 if is_inside else 257
        )
    }
    if is_inside:
        folder = with_tower_inside(INTERNVIT, tmp_path, INTERNVIT_TOWER, **changes)
    else:
        folder = copied(INTERNVIT, tmp_path)
        save_file(tensors | changes, tmp_path / "towers" / INTERNVIT_TOWER / "model.safetensors")
    rules = {"crop_size": 224, "size": 224, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "towers" / INTERNVIT_TOWER / "preprocessor_config.json").write_text(json.dumps(rules))
    used = load(folder).image_processor.rules
    assert used.size == 336
    assert used.mean == IMAGENET_MEAN


def test_a_picture_size_must_be_a_whole_number_of_patches() -> None:
    with pytest.raises(ConfigError, match="Use 98"):
        load(INTERNVIT, image_size=100)


def test_a_released_tower_inside_needs_no_description(tmp_path: Path) -> None:
    """The released InternVL-Chat checkpoints: a 577-entry table, no tower folder, width 3200."""
    width, heads_width = 3200, 12800
    layer = {
        "attn.qkv.weight": (3 * width, width),
        "attn.q_norm.weight": (width,),
        "mlp.fc1.weight": (heads_width, width),
        "norm1.weight": (width,),
    }
    shapes = {f"encoder.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    shapes |= {
        "embeddings.position_embedding": (1, 577, width),
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
    }
    folder = tmp_path / "x"
    folder.mkdir()
    # Files of holes: only shapes are read.
    tensors = {TOWER_PREFIX + name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    write_header_only(folder / "model.safetensors", tensors | {"model.norm.weight": torch.ones(64)})
    config = json.loads((INTERNVIT / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    notices: list[str] = []
    checkpoint = recognise(folder)
    tower = find_tower(checkpoint, checkpoint.config, notices).tower
    assert (tower.family, tower.hidden_size, tower.num_layers) == ("internvit", 3200, 2)
    assert tower.fields["num_attention_heads"] == 25
    assert tower.image_size == 336
    assert notices


def write_header_only(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a sparse safetensors file: a real header, and a hole where the data would be."""
    header: dict[str, object] = {}
    offset = 0
    norm = b""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0] != "model.norm.weight"):
        size = tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        norm = norm or tensor.numpy().tobytes()
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text + norm)
        stream.truncate(8 + len(text) + offset)


def test_the_tokens_of_im_start_end_are_there() -> None:
    model = loaded(IM_START_END)
    assert model.im_start_end
    assert model.tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [1000, 1001]


def test_a_projector_checkpoint_with_im_start_end_brings_its_embedding(tmp_path: Path) -> None:
    folder = copied(PROJECTOR_ONLY, tmp_path)
    change_config(folder, mm_use_im_start_end=True, vocab_size=1002)
    projector = torch.load(folder / "mm_projector.bin", weights_only=True)
    table = torch.randn(1002, 64)
    torch.save(projector | {"model.embed_tokens.weight": table}, folder / "mm_projector.bin")
    model = load(folder, base=str(BASE))
    assert torch.equal(model.model.get_input_embeddings().weight, table)
    assert model.model.lm_head.weight.shape == (1002, 64)
    assert model.tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [1000, 1001]


def test_the_vocabulary_grows_only_when_something_is_new(tmp_path: Path) -> None:
    folder = copied(CLIP, tmp_path)
    change_config(folder, mm_use_im_patch_token=None)
    assert load(folder).model.config.text_config.vocab_size == 1000
    change_config(folder, mm_use_im_patch_token=True)
    model = load(folder)
    assert model.tokenizer.convert_tokens_to_ids("<im_patch>") == 1000
    assert model.model.get_input_embeddings().weight.shape == (1001, 64)
    assert any("rows are added" in notice for notice in model.notices)
    assert torch.equal(logits_of(model, CLIP)[..., :1000], logits_of(loaded(CLIP), CLIP))


def test_an_absent_im_patch_flag_is_true_when_the_embedding_has_its_row(tmp_path: Path) -> None:
    tensors = weights_of(CLIP)
    grown = {
        name: torch.cat([tensors[name], tensors[name][:1]])
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    folder = rewritten(CLIP, tmp_path, **grown)
    change_config(folder, mm_use_im_patch_token=None, vocab_size=1001)
    assert load(folder).tokenizer.convert_tokens_to_ids("<im_patch>") == 1000


def test_a_template_is_asked_for_or_found() -> None:
    assert load(CLIP, template="llava_llama_2").template.name == "llava_llama_2"
    with pytest.raises(ConfigError):
        LoadOptions(template="vicuna_v2")
    with pytest.raises(ConfigError, match="bits"):
        LoadOptions(bits=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="eager"):
        LoadOptions(attn_implementation="egaer")


def test_both_attention_forms_agree() -> None:
    eager = load(INTERNVIT, attn_implementation="eager")
    torch.testing.assert_close(
        logits_of(eager, INTERNVIT), logits_of(loaded(INTERNVIT), INTERNVIT), atol=1e-4, rtol=0
    )


def test_a_model_loads_in_bfloat16() -> None:
    model = load(INTERNVIT, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert logits_of(model, INTERNVIT).isfinite().all()


def test_code_written_for_the_original_loads_and_generates(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        str(CLIP), None, "llava-v1.5-7b", device="cpu", torch_dtype=torch.float32
    )
    assert context_len == 2048
    assert image_processor is model.get_vision_tower().image_processor
    pixels = image_processor.preprocess(pictures()[0], return_tensors="pt", aspect="pad")["pixel_values"]
    ids = torch.tensor([expected(CLIP)[0]["ids_one"]])
    new_ids = model.generate(
        ids, images=pixels, image_sizes=[(8, 8)], do_sample=False, num_beams=1, max_new_tokens=32
    )
    assert new_ids.tolist() == [expected(CLIP)[0]["gen_one"]]
    assert tokenizer.batch_decode(new_ids, skip_special_tokens=True)[0].strip()
    if not torch.cuda.is_available():
        load_pretrained_model(str(CLIP), None, "x")
        assert "on the CPU" in caplog.text


def test_a_language_model_alone_loads_for_outside_code() -> None:
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        str(BASE), None, "vicuna", device="cpu", dtype="float32"
    )
    assert image_processor is None
    assert context_len == 2048
    ids = torch.tensor([tokenizer.encode("Hello")])
    assert model(ids).logits.shape[-1] == 1000


def test_a_whole_model_is_loaded_by_from_pretrained() -> None:
    import llava

    model = llava.LlavaLlamaForCausalLM.from_pretrained(str(CLIP), torch_dtype=torch.float32, device="cpu")
    assert type(model) is llava.LlavaLlamaForCausalLM
    ids = torch.tensor([expected(CLIP)[0]["ids_text"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(CLIP).model(ids).logits)


def test_a_planted_pickle_does_not_run(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = copied(CLIP, tmp_path)
    torch.save({"model.norm.weight": Planted()}, folder / "pytorch_model.bin")
    with pytest.raises(LlavaError):
        load(folder)
    shutil.rmtree(folder)
    assert not (tmp_path / "ran").exists()
