"""The same samples in every form that training data comes in, and in every order: what is trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.cli import main as cli
from llava.train.train import main as train_py
from tests.train.runs import VICUNA
from tests.train.test_moving_in import PICTURE, TALKS, answer, flags, losses, recipe
from tests.train.test_replay import lines_of

IMAGES = TALKS / "images"
Sample = dict[str, Any]


def samples() -> list[Sample]:
    """Return the recorded conversations that are no longer than the model's length in either counting."""
    found: list[Sample] = json.loads((TALKS / "data.json").read_text())
    return [sample for sample in found if sum(len(turn["value"]) for turn in sample["conversations"]) < 500]


def write_json(folder: Path, content: object, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content, ensure_ascii=False))
    return path


def as_messages(sample: Sample) -> Sample:
    """Spell a sample as OpenAI does, its picture a part of the first question's content."""
    messages: list[Sample] = []
    for turn in sample["conversations"]:
        role = "user" if turn["from"] == "human" else "assistant"
        content: object = turn["value"]
        if "<image>" in turn["value"]:
            before, after = (text.strip("\n") for text in turn["value"].split("<image>"))
            picture = {"type": "image_url", "image_url": {"url": sample["image"]}}
            content = [{"type": "text", "text": before}, picture, {"type": "text", "text": after}]
        messages.append({"role": role, "content": content})
    return {"id": sample["id"], "messages": messages}


def in_form(form: str, folder: Path) -> Path:
    """Write the samples in one of the forms."""
    found = samples()
    if form == "list":
        return write_json(folder, found)
    if form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = [
            {
                "id": sample["id"],
                "conversations": sample["conversations"],
                "image": {"bytes": (IMAGES / sample["image"]).read_bytes(), "path": None}
                if "image" in sample
                else None,
            }
            for sample in found
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
        return folder / "data.parquet"
    lines = map(as_messages, found) if form == "messages" else found
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def train_on(path: Path, output_dir: Path, *extra: str) -> list[float]:
    """Train three steps by the original's flags; returns the losses."""
    assert train_py(flags(output_dir, "--data_path", str(path), *extra)) == 0
    return losses(output_dir)


@pytest.mark.parametrize("form", ["jsonl", "messages", "parquet"])
def test_every_form_of_the_same_samples_trains_the_same(form: str, tmp_path: Path) -> None:
    expected = train_on(in_form("list", tmp_path), tmp_path / "list out")
    assert train_on(in_form(form, tmp_path), tmp_path / "out") == pytest.approx(expected, rel=1e-6)


def test_a_mixture_repeats_what_it_says(tmp_path: Path) -> None:
    found = samples()
    with_picture = [sample for sample in found if "image" in sample][:6]
    without = [sample for sample in found if "image" not in sample][:4]
    meta = {
        "pictures": {"root": f"{IMAGES}/", "annotation": str(write_json(tmp_path, with_picture, "p.json"))},
        "texts": {"root": "", "annotation": str(write_json(tmp_path, without, "t.json")), "repeat_time": 3},
    }
    path = recipe(
        tmp_path,
        data={"path": None, "image_folder": None, "meta": str(write_json(tmp_path, meta, "meta.json"))},
        run={"max_steps": -1, "epochs": 2, "output_dir": str(tmp_path / "out"), "global_batch": 6},
    )
    assert cli(["train", str(path)]) == 0
    lines = lines_of(tmp_path / "out")
    assert len(lines) == 6
    assert sum(line["num_samples"] for line in lines) == 2 * (6 + 3 * 4)
    assert sum(line["num_pictures"] for line in lines) == 2 * 6
    assert {name for line in lines for name in line["loss_by_source"]} == {"pictures", "texts"}


def test_several_pictures_of_a_sample_are_all_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pair(number: int, question: str, pictures: list[str]) -> Sample:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"The model {number}."}]
        return {"id": f"pair-{number}", "image": pictures, "conversations": turns}

    names = sorted(path.name for path in IMAGES.iterdir())
    asked = "Here <image> and there <image>\nWhat is other?"
    found = [pair(n, asked, names[n : n + 2]) for n in range(8)]
    first = train_on(write_json(tmp_path, found), tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert [line["num_pictures"] for line in lines] == [8, 8, 8]
    for sample in found:
        sample["image"] = [sample["image"][0], names[-1]]
    assert train_on(write_json(tmp_path, found, "other.json"), tmp_path / "other")[0] != first[0]
    answer(tmp_path / "out", capsys)


def test_text_alone_is_trained_on_under_a_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [sample for sample in samples() if "image" not in sample]
    assert train_on(write_json(tmp_path, texts), tmp_path / "out")[2] > 0
    assert all(line["num_pictures"] == 0 for line in lines_of(tmp_path / "out"))
    answer(tmp_path / "out", capsys)


@pytest.mark.parametrize("stage", ["finetune", "lora"])
def test_a_language_model_alone_is_trained_on_text(stage: str, tmp_path: Path) -> None:
    texts = [sample for sample in samples() if "image" not in sample]
    path = recipe(
        tmp_path,
        model={"vision_tower": None, "select_layer": None, "projector_type": None, "path": str(VICUNA)},
        data={"path": str(write_json(tmp_path, texts)), "image_folder": None},
        stage={"name": stage},
        optimizer={"lr": 1e-2, "schedule": "constant"},
        run={"output_dir": str(tmp_path / "out"), "max_steps": 8},
    )
    assert cli(["train", str(path)]) == 0
    found = losses(tmp_path / "out")
    assert found[-1] < found[0]


def test_a_picture_without_a_tower_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(
        tmp_path,
        model={"vision_tower": None, "select_layer": None, "projector_type": None},
        run={"output_dir": str(tmp_path / "out")},
    )
    assert cli(["train", str(path)]) == 2
    assert "vision_tower" in capsys.readouterr().err


def test_packed_and_padded_runs_have_the_same_losses(tmp_path: Path) -> None:
    path = recipe(tmp_path, run={"max_steps": 6, "micro_batch": 2}, data={"max_length": 256})
    for switch in ("true", "false"):
        argv = ["train", str(path), "--data.packing", switch, "--run.output_dir", str(tmp_path / switch)]
        assert cli(argv) == 0
    packed, padded = lines_of(tmp_path / "true"), lines_of(tmp_path / "false")
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in packed] == pytest.approx([line[key] for line in padded], rel=1e-4)
    assert sum(line["num_padded"] for line in packed) == 0 < sum(line["num_padded"] for line in padded)


def test_grouping_by_length_removes_padding(tmp_path: Path) -> None:
    padded = {}
    for order in ("random", "length"):
        argv = flags(tmp_path / order, "--packing", "False", "--order", order, "--max_steps", "8")
        assert train_py(argv) == 0
        padded[order] = sum(line["num_padded"] for line in lines_of(tmp_path / order))
    assert padded["length"] < padded["random"] / 2


def test_grouping_by_modality_keeps_pictures_and_text_apart(tmp_path: Path) -> None:
    argv = flags(tmp_path / "out", "--group_by_modality_length", "True", "--max_steps", "8")
    assert train_py(argv) == 0
    shares = [line["num_pictures"] / line["num_samples"] for line in lines_of(tmp_path / "out")]
    assert sorted(shares) == [0.0] * 3 + [1.0] * 5


def test_a_picture_that_is_gone_names_its_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = samples()
    found[0]["image"] = "gone.png"
    assert train_py(flags(tmp_path / "out", "--data_path", str(write_json(tmp_path, found)))) == 2
    said = capsys.readouterr().err
    assert "gone.png" in said
    assert "data.json item 1" in said


def test_pictures_of_any_mode_are_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    found = [sample for sample in samples() if "image" in sample][:4]
    for sample, mode in zip(found, ("L", "RGBA", "P", "CMYK"), strict=True):
        buffer = io.BytesIO()
        Image.open(PICTURE).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        (folder / sample["image"]).write_bytes(buffer.getvalue())
    argv = ["--image_folder", str(folder), "--bad_samples", "fail"]
    assert len(train_on(write_json(tmp_path, found), tmp_path / "out", *argv)) == 3
