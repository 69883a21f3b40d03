"""What GGUF files say: models and mmprojs are told apart and paired by metadata, whatever they are called."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llava.engine.gguf_facts import GgufManifest, is_gguf, read_model
from llava.engine.gguf_tower import GgufTower
from llava.errors import CheckpointError, ConfigError, FileError, WeightsError
from llava.export.gguf import export_gguf
from tests.engine.ggufs import CHECKPOINTS

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_gguf(CHECKPOINTS / "llava-a-clip-mlp2x", folder, type="F16")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """The two files under names that say the opposite."""
    shutil.copy(exported / "model-F16.gguf", tmp_path / "mmproj.gguf")
    shutil.copy(exported / "mmproj-F16.gguf", tmp_path / "model.gguf")
    return tmp_path


def test_names_mean_nothing(folder: Path) -> None:
    facts = read_model(folder)
    assert (facts.path, facts.mmproj) == (folder / "mmproj.gguf", folder / "model.gguf")
    assert read_model(folder / "mmproj.gguf") == facts
    assert facts.template.name == "vicuna_v1"
    assert facts.rules is not None
    assert facts.rules.size == 56
    assert facts.context_length == 2048
    assert set(facts.control_tokens) == {"<s>", "</s>", "<unk>"}
    assert facts.notices == ()
    with pytest.raises(CheckpointError, match="not a language model"):
        read_model(folder / "model.gguf")
    with pytest.raises(CheckpointError, match="is no mmproj"):
        read_model(folder, mmproj=folder / "mmproj.gguf")


def test_the_weights_of_a_token_leave_the_table_out(exported: Path) -> None:
    reader = gguf.GGUFReader(exported / "model-F16.gguf")
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    assert read_model(exported).bytes_per_token == sum(sizes.values()) - sizes["token_embd.weight"]


def test_several_of_a_kind_are_named(folder: Path) -> None:
    shutil.copy(folder / "model.gguf", folder / "other.gguf")
    with pytest.raises(CheckpointError, match="2 mmproj files fit"):
        read_model(folder)
    assert read_model(folder, mmproj=folder / "other.gguf").mmproj == folder / "other.gguf"
    shutil.copy(folder / "mmproj.gguf", folder / "more.gguf")
    with pytest.raises(CheckpointError, match=r"2 language models as GGUF: mmproj.gguf, more.gguf"):
        read_model(folder)


def test_what_is_no_gguf_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        read_model(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="0 language models"):
        read_model(tmp_path)
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(FileError, match="not a GGUF file"):
        read_model(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    with pytest.raises(FileError, match="is broken"):
        read_model(tmp_path / "cut.gguf")
    assert not is_gguf(tmp_path / "text.gguf")
    assert is_gguf(tmp_path / "cut.gguf")
    assert is_gguf(tmp_path)
    assert not is_gguf(CHECKPOINTS / "llava-a-clip-mlp2x")


def write(path: Path, architecture: str, keys: dict[str, Any]) -> None:
    """Write a file of a few keys, as other programs do, without our manifest."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        adders = {str: writer.add_string, list: writer.add_array, int: writer.add_uint32}
        adders[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TOKENS = {"tokenizer.ggml.tokens": ["<unk>", "<s>", "a"], "tokenizer.ggml.token_type": [2, 3, 1]}


def test_files_of_others_are_read_by_the_conventions_and_that_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", "llama", {"general.name": "llava-v1.6-mistral-7b", **TOKENS})
    vision = {"clip.vision.image_size": 336, "clip.vision.image_mean": [0.5] * 3}
    write(tmp_path / "b.gguf", "clip", {**vision, "clip.vision.image_std": [0.5] * 3})
    facts = read_model(tmp_path)
    assert facts.template.name == "mistral_instruct"
    assert facts.adds_space
    assert facts.rules is not None
    assert (facts.rules.size, facts.rules.aspect) == (336, "pad")
    assert len(facts.notices) == 2
    assert read_model(tmp_path, template="vicuna_v1").template.name == "vicuna_v1"


def test_a_manifest_comes_back_and_a_broken_one_is_an_error() -> None:
    manifest = GgufManifest("v1", {"size": 56}, im_start_end=True, legacy=False)
    assert GgufManifest.from_json(manifest.to_json(), source="x") == manifest
    for text in ("{", "[]", '{"template": "v1"}'):
        with pytest.raises(CheckpointError, match="cannot be read"):
            GgufManifest.from_json(text, source="x")


def test_a_tower_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "other.gguf", "clip", {"clip.projector_type": "resampler"})
    with pytest.raises(ConfigError, match="'resampler'"):
        GgufTower(tmp_path / "other.gguf")
    numbers = ("embedding_length", "feed_forward_length", "attention.head_count", "image_size", "patch_size")
    keys: dict[str, Any] = {f"clip.vision.{name}": 8 for name in numbers}
    write(tmp_path / "empty.gguf", "clip", {**keys, "clip.vision.block_count": 2})
    with pytest.raises(WeightsError, match="lacks tensors"):
        GgufTower(tmp_path / "empty.gguf")
