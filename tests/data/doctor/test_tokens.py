"""The doctor's forecast is what the trainer does, and its preview shows what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.data.doctor.examine import ExamineOptions, examine
from llava.data.doctor.findings import KINDS
from llava.data.doctor.picture_checks import PictureLimits, examine_bytes
from llava.data.doctor.tokens import TokenChecker
from llava.data.records import PictureFolder, Record, record_of
from llava.data.samples import SampleEncoder
from llava.demo import embedded_model_path
from llava.errors import DataError
from llava.processing.image_rules import clip_rules
from llava.processing.pixels import ImageProcessor
from llava.processing.tokenizer import load_tokenizer
from llava.templates import get_template
from tests.data.doctor.corpus import Builder, encoded
from tests.data.doctor.planted import NUM_KINDS, SAMPLES
from tests.data.doctor.test_examine import checker

ROOT = Path(__file__).parents[3]


def records(folder: Path) -> list[Record]:
    make = Builder(folder, 11)
    place = PictureFolder(str(make.corpus.pictures), is_limit=True)
    return [
        record_of(make.sample(num_rounds=1 + number), source="x", where=f"x:{number}", number=1, folder=place)
        for number in range(6)
    ]


@pytest.mark.parametrize("template", ["v1", "llama_2", "mpt"])
def test_the_forecast_is_what_the_encoder_does(tmp_path: Path, template: str) -> None:
    tokens = checker(template)
    everything = records(tmp_path / template)
    for record in everything:
        length, _ = tokens.examine(record)
        assert length is not None
    for limit in (150, 260, 300, 340, 420, 520):
        encoder = SampleEncoder(
            tokens.tokenizer, tokens.template, ImageProcessor(clip_rules(336)), 64, max_length=limit
        )
        counted = TokenChecker(tokens.tokenizer, tokens.template, 64, limit)
        counted.forecasts = [forecast for forecast in counted.forecasts if forecast.limit == limit]
        num_cut = num_lost = num_targets = 0
        for record in everything:
            length, _ = counted.examine(record)
            try:
                cut = encoder.encode(record)
            except DataError:
                num_lost += 1
                continue
            num_cut += cut.is_truncated
            num_targets += cut.num_targets
        told = counted.forecasts[0]
        assert (told.num_cut, told.num_lost) == (num_cut, num_lost)
        assert told.num_targets - told.num_targets_lost == num_targets


def test_the_preview_is_the_whole_prompt_and_marks_the_answers(tmp_path: Path) -> None:
    tokens = checker()
    record = records(tmp_path / "x")[1]
    pieces = tokens.preview(record)
    trained = "".join(piece.text for piece in pieces if piece.is_trained)
    answers = [turn["value"] for turn in record.turns if turn["from"] == "gpt"]
    assert trained == "".join(f" {answer}</s>" for answer in answers)
    assert [piece.num_image_tokens for piece in pieces if piece.num_image_tokens] == [64]
    shown = "".join(piece.text for piece in pieces)
    for turn in record.turns:
        assert turn["value"].removeprefix("<image>") in shown


def test_lengths_are_those_of_ids_and_labels(tmp_path: Path) -> None:
    tokens = checker()
    for record in records(tmp_path / "x"):
        length, faults = tokens.examine(record)
        encoder = SampleEncoder(
            tokens.tokenizer, tokens.template, ImageProcessor(clip_rules(336)), 64, max_length=10**6
        )
        whole = encoder.encode(record)
        assert length is not None
        assert length.total == whole.num_tokens == len(whole.input_ids) + 63
        assert length.targets == sum(label != IGNORE_INDEX for label in whole.labels)
        assert faults == []


def test_a_sample_that_the_template_cannot_hold_is_named(tmp_path: Path) -> None:
    make = Builder(tmp_path / "corpus", 5)
    path = make.corpus.folder / "x.jsonl"
    path.write_text(json.dumps(make.sample(num_rounds=2)) + "\n", encoding="utf-8")
    tokens = TokenChecker(load_tokenizer(embedded_model_path()), get_template("plain"), 64, 512)
    options = ExamineOptions(image_folder=str(make.corpus.pictures), num_workers=0)
    found = [finding.code for finding in examine(str(path), options, tokens=tokens).findings]
    assert found == ["sample-untrainable"]


def test_a_picture_over_the_size_for_a_warning_is_named() -> None:
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    facts = examine_bytes(encoded(image), "a.png", PictureLimits(max_pixels=50_000))
    assert [code for code, _ in facts.faults] == ["picture-large"]
    assert examine_bytes(encoded(image), "a.png", PictureLimits()).faults == ()


def test_every_kind_is_planted_somewhere_and_stands_in_the_document() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    assert [code for code in KINDS if f'"{code}"' not in tests] == []
    document = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    for code, kind in KINDS.items():
        severity = "note" if kind.severity == "info" else kind.severity
        assert f"| `{code}` | {severity} | {kind.title.replace('<image>', '`<image>`')} |" in document
    assert len(KINDS) >= NUM_KINDS
    assert set(SAMPLES) <= set(KINDS)
