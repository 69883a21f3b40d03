"""`llava export` over every fixture and format: exact where it must be, else refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava import cli
from llava.demo import embedded_model_path, example_images
from llava.errors import ConfigError, FileError, TokenizerError, UsageError
from llava.export.exporting import ExportOptions, export
from llava.export.source import open_source, source_of
from llava.model.builder import LoadOptions, load_model, new_model
from llava.model.checkpoint import recognise
from llava.model.saving import rules_of, save_checkpoint
from llava.processing.tokenizer import load_tokenizer
from tests.model.folders import (
    BASE,
    CLIP,
    IM_START_END,
    INTERNVIT,
    PROJECTOR_ONLY,
    SMALL_CLIP,
    loaded,
    small_config,
    weights_of,
)

PAIRS = [
    (CLIP, "hf"),
    (INTERNVIT, "hf"),
    (IM_START_END, "hf"),
    (PROJECTOR_ONLY, "hf"),
    (CLIP, "legacy"),
    (INTERNVIT, "legacy"),
    (PROJECTOR_ONLY, "legacy"),
    (IM_START_END, "merged"),
    (PROJECTOR_ONLY, "merged"),
    (embedded_model_path(), "hf"),
]


def options(model: Path, to: str, output: Path, **changes: Any) -> ExportOptions:
    base = str(BASE) if model == PROJECTOR_ONLY else None
    fields: dict[str, Any] = {"model": str(model), "to": to, "output": output, "base": base, **changes}
    return ExportOptions(**fields)


def saved(folder: Path, **changes: Any) -> Path:
    """Save a small random CLIP model in our own format, without tokenizer.model."""
    config = small_config(max_position_embeddings=512, **changes)
    model = new_model(config, SMALL_CLIP, image_size=56, seed=0)
    tokenizer = load_tokenizer(CLIP)
    return save_checkpoint(
        folder, model=model, tokenizer=tokenizer, rules=rules_of(model), template="vicuna_v1"
    )


def figures(output: Path) -> dict[str, Any]:
    report = json.loads((output / "parity.json").read_text())
    return {item["name"]: item["value"] for item in report["measurements"]}


@pytest.mark.parametrize(("model", "to"), PAIRS, ids=[f"{model.name} {to}" for model, to in PAIRS])
def test_an_export_computes_what_its_source_does(model: Path, to: str, tmp_path: Path) -> None:
    report = export(options(model, to, tmp_path / "out"))
    assert report.passed, report.to_dict()
    found = figures(tmp_path / "out")
    assert found["features, largest difference"] <= 1e-5
    assert found["logits, largest difference"] <= 1e-5
    assert found["token ids equal"] == found["greedy texts equal"] == "3 of 3"
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("to", ["legacy", "merged"])
def test_an_adapter_is_merged_on_the_way(lora: tuple[Path, Path], to: str, tmp_path: Path) -> None:
    adapter, base = lora
    report = export(options(adapter, to, tmp_path / "out", base=str(base), dtype="float32"))
    assert report.passed, report.to_dict()
    kind = recognise(tmp_path / "out").kind
    assert kind == {"legacy": "full", "merged": "own"}[to]


def test_legacy_has_the_originals_names_and_files(tmp_path: Path) -> None:
    export(options(IM_START_END, "legacy", tmp_path / "out"))
    original, written = weights_of(IM_START_END), weights_of(tmp_path / "out")
    kept = {name for name in original if "rotary_emb" not in name and "vision_tower" not in name}
    assert kept == set(written)
    assert all(torch.equal(written[name], original[name]) for name in kept)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (
        IM_START_END / "tokenizer.model"
    ).read_bytes()
    added = json.loads((tmp_path / "out" / "added_tokens.json").read_text())
    assert added == json.loads((IM_START_END / "added_tokens.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llava_llama"
    assert Path(config["mm_vision_tower"]).is_dir()
    assert {"special_tokens_map.json", "tokenizer_config.json", "generation_config.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_a_tower_that_is_only_inside_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert export(options(embedded_model_path(), "legacy", tmp_path / "out")).passed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tower = Path(config["mm_vision_tower"])
    assert tower.parent == (tmp_path / "out").resolve()
    assert "InternViT-6B" in tower.name
    assert config["mm_vision_select_layer"] == -1
    assert not any("vision_tower" in name for name in weights_of(tmp_path / "out"))
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert load_model(moved, LoadOptions(device="cpu")).num_image_tokens == 64


def test_hf_has_the_layout_of_llava_hf(tmp_path: Path) -> None:
    export(options(CLIP, "hf", tmp_path / "out"))
    names = set(weights_of(tmp_path / "out"))
    assert "language_model.lm_head.weight" in names
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert config["image_token_index"] == 1000
    assert config["text_config"]["vocab_size"] == 1024
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["patch_size"] == 14
    assert processor["num_additional_image_tokens"] == 1
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(1000, 1024))
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_pad"] is True
    # And it is a checkpoint for us too, of the kind "hf".
    again = load_model(tmp_path / "out", LoadOptions(device="cpu", dtype="float32"))
    assert torch.equal(again.model.lm_head.weight[:1000], loaded(CLIP).model.lm_head.weight)


PLAIN = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, picture = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
content = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
batch = processor(images=[Image.open(picture)], text=text, return_tensors="pt", add_special_tokens=False)
ids = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1]:]
assert not [name for name in sys.modules if name.split(".")[0] == "llava"]
print(ids.tolist())
"""


@pytest.mark.slow
def test_hf_needs_nothing_of_this_package(tmp_path: Path) -> None:
    export(options(INTERNVIT, "hf", tmp_path / "out", dtype="float32"))
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "out"), str(example_images()[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"mm_projector_type": "linear"},
        {"tie_word_embeddings": True},
        {"mm_vision_select_feature": "cls_patch"},
        {"image_aspect_ratio": "square"},
        {"model_type": "llava_mistral"},
        {"model_type": "llava_qwen2"},
    ],
    ids=str,
)
def test_hf_holds_variants_of_the_family(changes: dict[str, Any], tmp_path: Path) -> None:
    report = export(options(saved(tmp_path / "x", **changes), "hf", tmp_path / "out"))
    assert report.passed, report.to_dict()


def test_rounding_the_weights_is_measured_and_not_called_exact(tmp_path: Path) -> None:
    report = export(options(CLIP, "merged", tmp_path / "out", dtype="bfloat16"))
    assert report.passed
    measured = {item.name: item for item in report.measurements}
    assert measured["logits, largest difference"].value > 1e-3  # type: ignore[operator]
    assert measured["greedy texts equal"].passed is None


@pytest.mark.parametrize(
    ("changes", "to", "message"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "hf", "mm_projector_type is 'mlp3x_gelu'"),
        ({"mm_projector_type": "mlp2x_gelu_ln"}, "hf", "mm_projector_type is 'mlp2x_gelu_ln'"),
        ({"model_type": "llava_qwen2"}, "legacy", "of type 'qwen2'"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    changes: dict[str, Any], to: str, message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "x", **changes)
    with pytest.raises(ConfigError, match=message):
        export(options(folder, to, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_legacy_without_a_sentencepiece_file_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "x")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        export(options(folder, "legacy", tmp_path / "out"))


def test_a_folder_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "out"
    taken.mkdir()
    (taken / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(FileError, match="exists"):
            export(options(CLIP, "merged", taken, overwrite=overwrite))
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]


def test_an_earlier_export_is_replaced_when_asked_for(tmp_path: Path) -> None:
    export(options(CLIP, "merged", tmp_path / "out"))
    with pytest.raises(FileError, match="--overwrite"):
        export(options(CLIP, "hf", tmp_path / "out"))
    export(options(CLIP, "hf", tmp_path / "out", overwrite=True))
    assert recognise(tmp_path / "out").kind == "hf"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_hf_export_is_a_source_too_and_tokens_keep_their_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(CLIP)
    tokenizer.pad_token = None
    model = new_model(small_config(pad_token_id=None), SMALL_CLIP, image_size=56, seed=0)
    folder = save_checkpoint(
        tmp_path / "x", model=model, tokenizer=tokenizer, rules=rules_of(model), template="vicuna_v1"
    )
    for source, target in ((folder, "once"), (tmp_path / "once", "twice")):
        assert export(options(source, "hf", tmp_path / target)).passed
        config = json.loads((tmp_path / target / "config.json").read_text())
        assert (config["image_token_index"], config["pad_token_id"]) == (1000, 1001)
        assert config["text_config"]["vocab_size"] == 1024
        tokens = json.loads((tmp_path / target / "tokenizer.json").read_text())["model"]["vocab"]
        assert (tokens["<image>"], tokens["<pad>"]) == (1000, 1001)


def test_an_export_that_fails_on_the_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileError("the disk is full")

    monkeypatch.setattr("llava.export.hf.save_tokenizer", fail)
    with pytest.raises(FileError, match="full"):
        export(options(CLIP, "hf", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"to is 'gguff'.*Did you mean 'gguf'"):
        options(CLIP, "gguff", tmp_path)
    with pytest.raises(UsageError, match="--dtype has no effect"):
        options(CLIP, "gguf", tmp_path, dtype="float16")
    with pytest.raises(UsageError, match="--type"):
        options(CLIP, "hf", tmp_path, type="Q8_0")


def test_a_loaded_model_is_a_source_like_its_folder() -> None:
    from_folder, from_memory = open_source(CLIP), source_of(loaded(CLIP))
    assert set(from_folder.shapes) == set(from_memory.shapes)
    values = dict(from_memory.tensors(torch.float32))
    assert all(torch.equal(values[name], tensor) for name, tensor in from_folder.tensors(torch.float32))


def test_the_command_prints_a_report_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(CLIP), "--to", "merged", "--output", str(tmp_path / "a")]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "pass  logits, largest difference" in printed
    assert printed.endswith(f"Wrote {tmp_path / 'a'}.\n")
    assert cli.main([*words[:-1], str(tmp_path / "b"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert {"config.json", "parity.json", "model.safetensors"} <= set(report["files"])
    assert cli.main(words) == 2
    assert "error[file]" in capsys.readouterr().err
