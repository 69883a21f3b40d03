"""The original's picture helpers under their old names: same arguments, same pixels."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava import mm_utils
from llava.errors import ConfigError, ImageError
from llava.processing.pixels import ImageProcessor, ImageRules, clip_rules
from tests.processing.pictures import encode, noise

OURS = ImageProcessor(clip_rules(24))
THEIRS = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
IMAGES = [noise(60, 31), noise(20, 50), noise(24, 24)]


class ClassConfig:
    """Some callers pass an object whose fields belong to its class."""

    image_aspect_ratio = "pad"


@pytest.mark.parametrize("config", [SimpleNamespace(image_aspect_ratio="pad"), ClassConfig()])
def test_pad_shows_the_whole_picture_with_our_processor_and_with_transformers(config: object) -> None:
    ours = mm_utils.process_images(IMAGES, OURS, config)
    theirs = mm_utils.process_images(IMAGES, THEIRS, config)
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    assert ours.shape == (3, 3, 24, 24)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, OURS(IMAGES))


@pytest.mark.parametrize("config", [SimpleNamespace(image_aspect_ratio="square"), SimpleNamespace(), None])
def test_any_other_value_crops_whatever_the_processors_own_rules(config: object) -> None:
    ours = mm_utils.process_images(IMAGES, OURS, config)
    assert isinstance(ours, torch.Tensor)
    assert torch.equal(ours, THEIRS(IMAGES, return_tensors="pt")["pixel_values"])


def test_expand2square_returns_a_square_picture_as_it_is() -> None:
    assert mm_utils.expand2square(IMAGES[2], (1, 2, 3)) is IMAGES[2]
    tall = mm_utils.expand2square(Image.new("RGB", (2, 5)), (1, 2, 3))
    assert [tall.getpixel((x, 0)) for x in range(5)] == [
        (1, 2, 3),
        (0, 0, 0),
        (0, 0, 0),
        (1, 2, 3),
        (1, 2, 3),
    ]


def test_base64_is_decoded_and_garbage_refused() -> None:
    text = base64.b64encode(encode(IMAGES[0]))
    assert mm_utils.load_image_from_base64(text).tobytes() == IMAGES[0].tobytes()
    assert mm_utils.load_image_from_base64(text.decode()).tobytes() == IMAGES[0].tobytes()
    with pytest.raises(ImageError):
        mm_utils.load_image_from_base64("/etc/passwd")


class TestAnyres:
    PINPOINTS = ((24, 48), (48, 24), (48, 48), (72, 24), (24, 72))

    def test_the_resolution_that_shows_most_and_wastes_least_is_chosen(self) -> None:
        assert mm_utils.select_best_resolution((100, 50), self.PINPOINTS) == (48, 24)
        assert mm_utils.select_best_resolution((50, 100), self.PINPOINTS) == (24, 48)
        assert mm_utils.select_best_resolution((300, 100), self.PINPOINTS) == (72, 24)
        # Both show every pixel of a small picture; the smaller canvas wastes less.
        assert mm_utils.select_best_resolution((10, 10), ((48, 48), (24, 48))) == (24, 48)
        with pytest.raises(ConfigError, match="empty"):
            mm_utils.select_best_resolution((10, 10), ())

    def test_the_grid_shape_counts_tiles_and_reads_a_list_written_as_text(self) -> None:
        assert mm_utils.get_anyres_image_grid_shape((300, 100), self.PINPOINTS, 24) == (3, 1)
        assert mm_utils.get_anyres_image_grid_shape(
            (300, 100), str([list(p) for p in self.PINPOINTS]), 24
        ) == (3, 1)

    @pytest.mark.parametrize("pinpoints", ["__import__('os')", "[[24]]", "[]", "[[0, 5]]", "7"])
    def test_broken_pinpoints_are_refused(self, pinpoints: str) -> None:
        with pytest.raises(ConfigError, match="image_grid_pinpoints"):
            mm_utils.get_anyres_image_grid_shape((10, 10), pinpoints, 24)

    def test_a_picture_is_fitted_centred_on_black(self) -> None:
        fitted = mm_utils.resize_and_pad_image(Image.new("RGB", (10, 4), "white"), (20, 20))
        assert fitted.size == (20, 20)
        assert fitted.getpixel((10, 5)) == (0, 0, 0)
        assert fitted.getpixel((10, 6)) == (255, 255, 255)
        assert fitted.getpixel((10, 13)) == (255, 255, 255)
        assert fitted.getpixel((10, 14)) == (0, 0, 0)
        # ceil on the free side: 100 * 48/301 = 15.9
        assert mm_utils.resize_and_pad_image(noise(301, 100), (48, 24)).getpixel((0, 3)) == (0, 0, 0)

    def test_tiles_are_cut_row_by_row(self) -> None:
        picture = noise(48, 24)
        left, right = mm_utils.divide_to_patches(picture, 24)
        assert left.tobytes() == picture.crop((0, 0, 24, 24)).tobytes()
        assert right.tobytes() == picture.crop((24, 0, 48, 24)).tobytes()

    def test_the_whole_picture_comes_first_and_then_its_tiles(self) -> None:
        config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=self.PINPOINTS)
        picture = noise(100, 50)
        for processor in (OURS, THEIRS):
            (views,) = mm_utils.process_images([picture], processor, config)
            assert views.shape == (3, 3, 24, 24)
            assert torch.equal(views[0], OURS([picture.resize((24, 24))])[0])
            assert torch.equal(views[1], OURS([picture.resize((48, 24)).crop((0, 0, 24, 24))])[0])

    def test_pictures_with_other_numbers_of_tiles_come_as_a_list(self) -> None:
        config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[24, 24], [48, 48]])
        views = mm_utils.process_images([noise(20, 20), noise(100, 100)], OURS, config)
        assert isinstance(views, list)
        assert [len(view) for view in views] == [2, 5]

    def test_missing_pinpoints_are_an_error(self) -> None:
        with pytest.raises(ConfigError, match="no image_grid_pinpoints"):
            mm_utils.process_images(IMAGES, OURS, SimpleNamespace(image_aspect_ratio="anyres"))


def test_processor_with_another_resize_edge_keeps_it_under_process_images() -> None:
    rules = ImageRules(24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "pad", 30)
    config = SimpleNamespace(image_aspect_ratio="pad")
    result = mm_utils.process_images(IMAGES, ImageProcessor(rules), config)
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, ImageProcessor(rules)(IMAGES))
