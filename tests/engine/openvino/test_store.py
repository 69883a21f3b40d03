"""Conversions on disk: made once, never half, made again when something they depend on changes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.engine.frontend import Frontend
from llava.engine.openvino import store
from llava.engine.openvino.conversion import STEPS
from llava.engine.openvino.store import default_cache_folder, load_openvino
from llava.engine.runner import Chunk
from llava.errors import CheckpointError, ConfigError, FileError
from llava.files import write_json
from tests.engine.openvino.helpers import EMBEDDED, ONE_THREAD, converted
from tests.model.folders import BASE, CLIP, IM_START_END, PROJECTOR_ONLY, copied, loaded

pytest.importorskip("openvino")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copy graphs that are there already instead of tracing them; returns the formats asked for."""
    asked: list[str] = []

    def copy(_: Any, folder: Path, weight_format: str, *, report: Callable[[str], None]) -> None:
        asked.append(weight_format)
        for name in STEPS:
            report(name)
        shutil.copytree(converted(CLIP, "float32"), folder, dirs_exist_ok=True)

    monkeypatch.setattr(store, "convert", copy)
    return asked


def load(path: Path, cache: Path, **options: Any) -> Any:
    return load_openvino(
        path, **{"format": "float32", "cache_folder": cache, "options": ONE_THREAD, **options}
    )


def test_a_second_load_reads_no_weights_and_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([1, 5, 9, 700])

    def logits(runner: Any) -> torch.Tensor:
        row = runner.open(len(ids))
        result: torch.Tensor = runner.forward([Chunk(row, runner.embed(ids))])
        return result

    frontend, runner = load(PROJECTOR_ONLY, tmp_path, base=str(BASE))
    model = loaded(PROJECTOR_ONLY).model
    with torch.inference_mode():
        reference = model(input_ids=ids[None]).logits[:, -1]
    assert (logits(runner) - reference).abs().max().item() < 1e-4
    monkeypatch.setattr(store, "load_model", lambda *_: pytest.fail("the weights are read again"))
    again, other = load(PROJECTOR_ONLY, tmp_path, base=str(BASE))
    assert torch.equal(logits(other), logits(runner))
    assert again.processor.template == frontend.processor.template
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("folder", [CLIP, IM_START_END, EMBEDDED], ids=lambda path: path.name)
@pytest.mark.usefixtures("quick")
def test_the_frontend_is_that_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    frontend, _ = load(folder, tmp_path)
    direct = Frontend.of_loaded(loaded(folder))
    assert (frontend.context_length, frontend.eos_ids) == (direct.context_length, direct.eos_ids)
    ours, theirs = frontend.processor, direct.processor
    assert (ours.template, ours.num_image_tokens, ours.im_start_end) == (
        theirs.template,
        theirs.num_image_tokens,
        theirs.im_start_end,
    )
    assert ours.image_processor.rules == theirs.image_processor.rules
    prompt = "USER: <image>\nWhat  is this? ASSISTANT:"
    assert ours.encode(prompt) == theirs.encode(prompt)


def test_template_and_format_are_the_callers(tmp_path: Path, quick: list[str]) -> None:
    frontend, _ = load(CLIP, tmp_path, template="plain")
    assert frontend.processor.template.name == "plain"
    frontend, runner = load(CLIP, tmp_path, format="float16")
    assert (frontend.processor.template.name, runner.name) == ("vicuna_v1", "openvino float16")
    assert quick == ["float32", "float16"]


def test_a_changed_checkpoint_is_converted_anew(tmp_path: Path, quick: list[str]) -> None:
    folder = copied(CLIP, tmp_path / "model")
    load(folder, tmp_path / "cache")
    load(folder, tmp_path / "cache")
    assert len(quick) == 1
    (folder / "note.txt").write_text("changed")
    load(folder, tmp_path / "cache")
    assert len(quick) == 2


def test_another_release_converts_anew(
    tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(CLIP, tmp_path)
    monkeypatch.setattr(store, "version", lambda package: f"{package} of tomorrow")
    load(CLIP, tmp_path)
    assert len(quick) == 2


def test_a_conversion_that_was_cut_off_is_not_used(
    tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(store, "save_tokenizer", fail)
        with pytest.raises(KeyboardInterrupt):
            load(CLIP, tmp_path)
    assert list(tmp_path.iterdir()) == []
    load(CLIP, tmp_path)
    assert len(quick) == 2


@pytest.mark.usefixtures("quick")
def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.x.part", tmp_path / ".b.y.part"
    for part in (old, new):
        part.mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    load(CLIP, tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_two_processes_that_convert_at_once_both_end_with_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def other_is_faster(path: Path, value: object) -> None:
        write_json(path, value)
        final = tmp_path / path.parent.name.split(".")[1]
        if not final.exists():
            shutil.copytree(path.parent, final)

    def copy(_: Any, folder: Path, __: str, *, report: Callable[[str], None]) -> None:
        del report
        shutil.copytree(converted(CLIP, "float32"), folder, dirs_exist_ok=True)

    monkeypatch.setattr(store, "convert", copy)
    monkeypatch.setattr(store, "write_json", other_is_faster)
    _, runner = load(CLIP, tmp_path)
    assert runner.name == "openvino float32"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("quick")
def test_a_converted_folder_is_a_model_by_itself(tmp_path: Path) -> None:
    load(CLIP, tmp_path)
    (folder,) = tmp_path.iterdir()
    moved = folder.rename(tmp_path / "moved")
    frontend, runner = load_openvino(moved, options=ONE_THREAD)
    assert runner.name == "openvino float32"
    assert frontend.processor.template.name == "vicuna_v1"


@pytest.mark.usefixtures("quick")
def test_a_folder_of_another_version_or_with_files_missing_is_refused(tmp_path: Path) -> None:
    load(CLIP, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "embeddings.npy").rename(tmp_path / "away.npy")
    with pytest.raises(CheckpointError, match=r"without embeddings\.npy"):
        load_openvino(folder)
    (tmp_path / "away.npy").rename(folder / "embeddings.npy")
    description = json.loads((folder / "openvino.json").read_text())
    (folder / "openvino.json").write_text(json.dumps(description | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="another version"):
        load_openvino(folder)


@pytest.mark.usefixtures("quick")
def test_progress_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(CLIP, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Converting llava-a-clip-mlp2x to float32 (once): vision tower" in captured.err


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be kept"):
        load(CLIP, tmp_path / "file" / "cache")


def test_the_cache_is_where_caches_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "llava" / "openvino"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "llava" / "openvino"


def test_a_disk_that_fills_up_is_an_error_that_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(FileError, match="cannot be written"):
        load(CLIP, tmp_path)
    assert list(tmp_path.iterdir()) == []
