"""Pixel values: to the bit those of transformers' PIL processors and of the original; and their rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.errors import ConfigError, ImageError, ImageLimitError
from llava.processing import resampling
from llava.processing.image_rules import Aspect
from llava.processing.images import load_image
from llava.processing.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    ImageProcessor,
    ImageRules,
    clip_rules,
    expand_to_square,
    imagenet_rules,
)
from tests.processing.pictures import noise

FIXTURES = Path(__file__).parents[1] / "fixtures"


def reference(rules: ImageRules) -> Any:
    """Return transformers' own PIL processor, set by what we would save."""
    settings_of_file = rules.to_preprocessor_config()
    settings_of_file.pop("image_processor_type")
    return LlavaImageProcessorPil(**settings_of_file)


def assert_parity(rules: ImageRules, *images: Image.Image) -> None:
    ours = ImageProcessor(rules)(images)
    theirs = reference(rules)(list(images), return_tensors="pt")["pixel_values"]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


class TestParity:
    @settings(max_examples=150, deadline=None)
    @given(
        width=st.integers(1, 300),
        height=st.integers(1, 300),
        edges=st.sampled_from([(56, None), (57, None), (55, 40), (55, 81), (56, 90), (33, 24)]),
        aspect=st.sampled_from(["pad", "square"]),
    )
    def test_any_size_and_rule_equals_transformers_to_the_bit(
        self, width: int, height: int, edges: tuple[int, int | None], aspect: Aspect
    ) -> None:
        size, shortest_edge = edges
        rules = ImageRules(size, CLIP_MEAN, CLIP_STD, aspect, shortest_edge)
        assert_parity(rules, noise(width, height, seed=width * 1000 + height))

    @pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (400, 2), (2, 400), (336, 335), (335, 336)])
    @pytest.mark.parametrize("aspect", ["pad", "square"])
    def test_extreme_shapes_equal_transformers(self, size: tuple[int, int], aspect: Aspect) -> None:
        assert_parity(imagenet_rules(48, aspect=aspect), noise(*size))

    @pytest.mark.parametrize(
        "rules", [clip_rules(224), clip_rules(336), imagenet_rules(336), imagenet_rules(448)]
    )
    def test_every_towers_rules_equal_transformers_on_photo_sizes(self, rules: ImageRules) -> None:
        assert_parity(rules, noise(640, 480), noise(480, 641), noise(500, 500))

    def test_a_canvas_built_in_strips_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resampling, "STRIP_PIXELS", 1000)
        assert_parity(imagenet_rules(56), noise(70, 333), noise(30, 333))

    @settings(max_examples=60, deadline=None)
    @given(width=st.integers(1, 40), ratio=st.integers(8, 40), size=st.sampled_from([24, 56, 57, 336]))
    def test_a_very_tall_picture_equals_transformers(self, width: int, ratio: int, size: int) -> None:
        image = noise(width, width * ratio + width % 7, seed=ratio)
        assert_parity(imagenet_rules(size), image)
        assert_parity(clip_rules(size), image.point([255 * (value > 127) for value in range(256)] * 3))

    def test_the_clip_processor_without_padding_is_met_as_well(self) -> None:
        theirs = CLIPImageProcessorPil()
        images = [noise(300, 200), noise(100, 260)]
        ours = ImageProcessor(ImageRules.from_preprocessor_config(theirs.to_dict()))
        assert ours.rules == clip_rules(224, aspect="square")
        assert torch.equal(ours(images), theirs(images, return_tensors="pt")["pixel_values"])

    def test_pictures_that_are_not_rgb_are_converted_first(self) -> None:
        image = noise(30, 20)
        rgba = image.convert("RGBA")
        rgba.putalpha(noise(30, 20, seed=1).convert("L"))
        assert_parity(clip_rules(24), image.convert("L"))
        assert_parity(clip_rules(24), rgba)


class TestOriginalFixtures:
    @pytest.mark.parametrize(
        ("name", "rules"),
        [("llava-a-clip-mlp2x", clip_rules(56)), ("llava-b-internvit-mlp2x", imagenet_rules(56))],
    )
    def test_pixels_of_the_checkpoint_fixtures_are_met(self, name: str, rules: ImageRules) -> None:
        expected = np.load(FIXTURES / "checkpoints" / "expected" / f"{name}.npz")
        images = [load_image(FIXTURES / "checkpoints" / "images" / f"{number}.png") for number in range(4)]
        assert np.array_equal(ImageProcessor(rules)(images).numpy(), expected["pixel_values"])
        if "px336_rows" in expected:
            at_336 = ImageProcessor(imagenet_rules(336))(images[:1])[0].numpy()
            assert np.array_equal(at_336[:, ::48], expected["px336_rows"])

    @pytest.mark.parametrize(
        ("run", "rules", "folder", "names"),
        [
            (
                "pretrain",
                imagenet_rules(56, aspect="square"),
                "pretrain",
                ["cap16", "cap18", "cap21", "cap22"],
            ),
            ("finetune", imagenet_rules(56), "finetune-data", ["im00", None, None, "im11"]),
            ("lora", clip_rules(56), "finetune-data", ["im00", None, None, "im11"]),
        ],
    )
    def test_pixel_sums_of_the_training_fixtures_are_met(
        self, run: str, rules: ImageRules, folder: str, names: list[str | None]
    ) -> None:
        expected = json.loads((FIXTURES / "training" / run / "first_batch.json").read_text())
        process = ImageProcessor(rules)
        for index, name in enumerate(names):
            if name is None:
                continue
            planes = process([load_image(FIXTURES / "training" / folder / "images" / f"{name}.png")])[
                0
            ].double()
            assert planes.sum().item() == pytest.approx(expected["pixel_sum"][index], rel=1e-12)
            assert planes.sum((1, 2)).tolist() == pytest.approx(
                expected["pixel_sum_per_channel"][index], rel=1e-12
            )
            assert planes.norm().item() == pytest.approx(expected["pixel_norm"][index], rel=1e-12)
            assert planes.abs().max().item() == expected["pixel_abs_max"][index]


class TestProcessor:
    def test_the_outside_surface_never_pads(self) -> None:
        image = noise(60, 40)
        padding = ImageProcessor(clip_rules(32))
        cropping = ImageProcessor(clip_rules(32, aspect="square"))
        assert torch.equal(padding.preprocess(image, return_tensors="pt")["pixel_values"], cropping([image]))
        assert torch.equal(padding(image, return_tensors="pt").pixel_values, cropping([image]))
        assert torch.equal(padding.preprocess(image, aspect="pad")["pixel_values"], padding([image]))
        assert isinstance(padding.preprocess([image], return_tensors="np")["pixel_values"], np.ndarray)

    def test_it_answers_to_the_names_of_a_towers_processor(self) -> None:
        processor = ImageProcessor(clip_rules(224))
        theirs = CLIPImageProcessorPil()
        assert processor.crop_size == dict(theirs.crop_size)
        assert processor.size["shortest_edge"] == theirs.size["shortest_edge"]
        assert processor.image_mean == list(theirs.image_mean)
        assert processor.image_std == list(theirs.image_std)

    def test_the_preview_shows_the_bytes_behind_the_pixel_values(self) -> None:
        rules = imagenet_rules(48)
        preview = ImageProcessor(rules).preview(noise(90, 30))
        assert preview.size == (48, 48)
        assert preview.getpixel((0, 0)) == rules.background == (123, 116, 103)
        again = ImageProcessor(rules)([preview])
        assert torch.equal(again, ImageProcessor(rules)([noise(90, 30)]))

    def test_an_empty_list_makes_an_empty_batch(self) -> None:
        assert ImageProcessor(clip_rules(24))([]).shape == (0, 3, 24, 24)

    def test_an_empty_or_endless_picture_is_refused(self) -> None:
        processor = ImageProcessor(clip_rules(336, aspect="square"))
        with pytest.raises(ImageError, match="empty"):
            processor([Image.new("RGB", (0, 4))])
        with pytest.raises(ImageLimitError, match="too long"):
            processor([Image.new("RGB", (1, 60_000))])

    def test_return_tensors_of_another_library_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="Did you mean 'pt'"):
            ImageProcessor(clip_rules(24)).preprocess(noise(2, 2), return_tensors="ptt")

    def test_expanding_uses_the_originals_offsets(self) -> None:
        wide = expand_to_square(noise(5, 2), (122, 116, 104))
        assert wide.size == (5, 5)
        assert wide.crop((0, 1, 5, 3)).tobytes() == noise(5, 2).tobytes()
        assert wide.getpixel((0, 0)) == wide.getpixel((4, 4)) == clip_rules(24).background


class TestRules:
    @pytest.mark.parametrize("rules", [clip_rules(224), imagenet_rules(448, aspect="square")])
    def test_rules_survive_both_files(self, rules: ImageRules) -> None:
        assert ImageRules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
        saved = json.loads(json.dumps(rules.to_preprocessor_config()))
        assert ImageRules.from_preprocessor_config(saved) == rules

    def test_a_saved_file_makes_plain_transformers_compute_the_same_pixels(self, tmp_path: Path) -> None:
        rules = imagenet_rules(56)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(rules.to_preprocessor_config()))
        plain = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        images = [noise(90, 41), noise(33, 70)]
        theirs = plain(images, return_tensors="pt")["pixel_values"]
        assert torch.equal(theirs, ImageProcessor(rules)(images))

    def test_an_old_preprocessor_file_is_read(self) -> None:
        path = FIXTURES / "checkpoints" / "towers" / "clip-tiny-56px" / "preprocessor_config.json"
        old = json.loads(path.read_text())
        assert ImageRules.from_preprocessor_config(old) == clip_rules(56, aspect="square")
        assert ImageRules.from_preprocessor_config(old, aspect="pad") == clip_rules(56)

    def test_a_resize_edge_that_is_not_the_crop_is_kept(self) -> None:
        rules = ImageRules.from_preprocessor_config({"size": {"shortest_edge": 256}, "crop_size": 224})
        assert (rules.size, rules.shortest_edge) == (224, 256)
        assert ImageRules.from_dict(rules.to_dict()) == rules
        assert_parity(rules, noise(100, 130))

    @pytest.mark.parametrize(
        "config",
        [
            {"resample": 2},
            {"do_center_crop": False},
            {"do_normalize": False},
            {"rescale_factor": 1 / 127.5},
            {"size": {"height": 384, "width": 384}},
            {"crop_size": {"height": 384, "width": 224}},
            {"size": "224"},
            {"image_processor_type": "SiglipImageProcessor"},
            {"image_mean": [0.5, 0.5]},
            {"image_std": [0.5, 0.0, 0.5]},
            {"do_tile": True},
        ],
    )
    def test_a_setting_that_would_not_be_honoured_is_refused(self, config: dict[str, object]) -> None:
        with pytest.raises(ConfigError) as caught:
            ImageRules.from_preprocessor_config(config)
        assert caught.value.remedy

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"aspect": "pda"}, "Did you mean 'pad'"),
            ({"size": 0}, "size is 0"),
            ({"size": 56.0}, "size is 56.0"),
            ({"mean": None}, "mean is None"),
            ({"colour": 1}, "colour"),
        ],
    )
    def test_a_broken_field_is_named(self, change: dict[str, object], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            ImageRules.from_dict(clip_rules(56).to_dict() | change)

    def test_a_missing_field_is_named(self) -> None:
        with pytest.raises(ConfigError, match="no std and no aspect"):
            ImageRules.from_dict({"size": 5, "mean": [0, 0, 0]})
