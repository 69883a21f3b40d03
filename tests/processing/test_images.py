"""The loader of pictures: every source, every odd picture, every limit, every way to be no picture."""

from __future__ import annotations

import base64
import io
import os
import re
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from llava.errors import ConfigError, ImageError, ImageLimitError
from llava.processing.images import ImageLimits, ImageSource, load_image
from tests.processing.pictures import encode, noise, png_of, with_orientation

PICTURE = noise(40, 30)
PNG = encode(PICTURE)


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.mode == second.mode and first.size == second.size and first.tobytes() == second.tobytes()


def refuse(source: ImageSource, *words: str, limits: ImageLimits | None = None) -> ImageError:
    """Load a bad picture and check that the message is one clean line that holds the words."""
    with pytest.raises(ImageError) as caught:
        load_image(source, limits=limits or ImageLimits())
    message = str(caught.value)
    assert caught.value.remedy
    assert "\n" not in message
    assert not re.search(r"0x[0-9a-f]{4}|object at|<.*>", message)
    for word in words:
        assert word in message
    return caught.value


class TestSources:
    def test_a_path_as_text_or_object_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "my picture.png"
        path.write_bytes(PNG)
        assert same(load_image(path), PICTURE)
        assert same(load_image(str(path)), PICTURE)

    def test_bytes_in_any_wrapping_are_read(self) -> None:
        for data in (PNG, bytearray(PNG), memoryview(PNG)):
            assert same(load_image(data), PICTURE)

    def test_a_data_uri_is_read_whatever_picture_type_it_declares(self) -> None:
        text = base64.b64encode(PNG).decode()
        for head in ("data:image/png;base64,", "data:image/jpeg;charset=x;BASE64,", "DATA:;base64,"):
            assert same(load_image(head + text), PICTURE)

    def test_base64_is_read_with_breaks_without_padding_and_url_safe(self) -> None:
        text = base64.b64encode(PNG).decode()
        broken_into_lines = base64.encodebytes(PNG).decode()
        url_safe = base64.urlsafe_b64encode(PNG).decode()
        for spelling in (text, text.rstrip("="), broken_into_lines, url_safe):
            assert same(load_image(spelling), PICTURE)

    def test_a_pil_image_is_converted_and_an_rgb_one_is_not_copied(self) -> None:
        assert load_image(PICTURE) is PICTURE
        grey = PICTURE.convert("L")
        assert same(load_image(grey), grey.convert("RGB"))

    def test_a_url_is_refused_unless_allowed(self) -> None:
        refuse("https://example.com/cat.png", "switched off")
        seen: list[tuple[str, int]] = []

        def fetch(url: str, max_bytes: int) -> bytes:
            seen.append((url, max_bytes))
            return PNG

        loaded = load_image("https://example.com/cat.png", allow_url=True, fetch=fetch)
        assert same(loaded, PICTURE)
        assert seen == [("https://example.com/cat.png", ImageLimits().max_bytes)]

    def test_other_schemes_are_refused_even_where_urls_are_allowed(self) -> None:
        for url in ("file:///etc/hosts", "ftp://host/a.png", "gopher://host/"):
            with pytest.raises(ImageError, match="not loaded by"):
                load_image(url, allow_url=True)

    def test_text_from_outside_cannot_name_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.png"
        path.write_bytes(PNG)
        with pytest.raises(ImageError) as caught:
            load_image(str(path), allow_path=False)
        assert str(path) not in str(caught.value)
        assert same(load_image(base64.b64encode(PNG).decode(), allow_path=False), PICTURE)

    def test_a_value_of_another_type_is_refused_by_name(self) -> None:
        refuse(7, "int")  # type: ignore[arg-type]


class TestNoPicture:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        refuse(tmp_path / "nothing.png", "nothing.png", "does not exist")
        refuse(str(tmp_path / "nothing.png"), "nothing.png", "Check the path")

    def test_a_folder_a_pipe_and_an_unreadable_name_are_told_apart(self, tmp_path: Path) -> None:
        refuse(tmp_path, "is a folder")
        os.mkfifo(tmp_path / "pipe")
        refuse(tmp_path / "pipe", "not a regular file")
        refuse(Path("nul\x00byte.png"), "cannot be read")
        refuse("x" * 10_000, "no picture")

    def test_an_empty_file_is_called_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        refuse(tmp_path / "a.png", "is empty")

    @pytest.mark.parametrize(
        ("data", "word"),
        [
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
            (b"<?xml version='1.0'?>\n<!-- x --><svg/>", "SVG"),
            (b"<!DOCTYPE html><html></html>", "web page"),
            (b"%PDF-1.7 ....", "PDF"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
            (b"\x00\x00\x00\x1cftypavif....", "AVIF"),
            (b"\x00\x00\x00\x1cftypisom....", "video"),
            (b"SIMPLE  =                    T", "FITS"),
            (b"8BPS\x00\x01", "Photoshop"),
            (b"\x00\x00\x01\x00\x01\x00", "icon"),
            (b"hello, world", "not a picture"),
            (b"BM hello, this is only text", "not a picture"),
        ],
    )
    def test_other_files_are_called_by_their_name(self, data: bytes, word: str) -> None:
        refuse(data, word, "PNG, JPEG, WEBP")

    def test_base64_garbage_is_refused(self) -> None:
        refuse("data:image/png;base64,!!!!", "broken base64")
        refuse("data:image/png,rawtext", "not base64")
        refuse("data:text/html;base64,PGh0bWw+", "text/html")
        refuse("data:image/png;base64," + base64.b64encode(b"no picture at all").decode(), "not a picture")
        refuse("QUJD" * 40, "no picture")

    def test_a_truncated_picture_is_called_cut_off(self) -> None:
        big = noise(200, 150)
        for format_name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"):
            data = encode(big, format_name)
            refuse(data[: len(data) // 2], format_name)
        refuse(encode(big, "JPEG")[:5000], "cut off")

    def test_a_picture_with_a_broken_middle_is_refused(self) -> None:
        data = bytearray(encode(noise(100, 100)))
        data[60:80] = bytes(20)
        refuse(bytes(data), "broken")

    def test_a_picture_without_pixels_is_refused(self) -> None:
        refuse(png_of(0, 50))
        refuse(Image.new("RGB", (0, 5)), "empty")

    def test_random_damage_never_ends_in_another_error(self) -> None:
        generator = np.random.default_rng(5)
        small = noise(24, 16)
        frames = [small, noise(24, 16, seed=1)]
        files = [encode(small, name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]
        files.append(encode(small, "GIF", save_all=True, append_images=frames))
        files.append(with_orientation(small, 6))
        for data in files:
            for _ in range(60):
                damaged = bytearray(data)
                for place in generator.integers(0, len(data), 4):
                    damaged[place] = generator.integers(0, 256)
                with suppress(ImageError):
                    assert load_image(bytes(damaged), on_notice=lambda _: None).mode == "RGB"


class TestLimits:
    def test_a_bomb_is_refused_by_its_header(self) -> None:
        data = png_of(30_000, 30_000, body=bytes(42_000))
        error = refuse(data, "30000 x 30000", "80 million")
        assert isinstance(error, ImageLimitError)
        assert error.code == "image-limit"

    def test_a_picture_of_pils_own_warning_size_raises_no_warning(self) -> None:
        refuse(png_of(10_000, 9_000), "10000 x 9000")
        refuse(png_of(10_000, 9_000), "cut off", limits=ImageLimits(max_pixels=10**9))

    @pytest.mark.parametrize("size", [(1, 60_000), (52_800, 44), (201, 1)])
    def test_a_line_is_refused_by_its_aspect_ratio(self, size: tuple[int, int]) -> None:
        assert isinstance(refuse(png_of(*size), "ratio"), ImageLimitError)

    def test_one_pixel_and_the_very_limit_are_fine(self) -> None:
        assert load_image(encode(noise(1, 1))).size == (1, 1)
        assert load_image(encode(noise(200, 1))).size == (200, 1)

    def test_bytes_are_counted_before_they_are_read_or_decoded(self, tmp_path: Path) -> None:
        limits = ImageLimits(max_bytes=100)
        (tmp_path / "a.png").write_bytes(PNG)
        text = base64.b64encode(PNG).decode()
        for source in (PNG, tmp_path / "a.png", text, "data:image/png;base64," + text):
            assert isinstance(refuse(source, "MiB", limits=limits), ImageLimitError)

    def test_a_long_animation_is_refused(self) -> None:
        frames = [Image.new("L", (2, 2), index % 256) for index in range(60)]
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert isinstance(refuse(data, "frames", limits=ImageLimits(max_frames=20)), ImageLimitError)

    def test_pil_images_obey_the_limits_too(self) -> None:
        refuse(Image.new("L", (2000, 2)), "ratio")
        refuse(PICTURE, "pixels", limits=ImageLimits(max_pixels=100))

    def test_a_compressed_text_or_colour_profile_bomb_does_no_harm(self) -> None:
        flood = zlib.compress(bytes(50_000_000))
        body = bytes(10 * (1 + 30))
        for chunk in ((b"zTXt", b"key\x00\x00" + flood), (b"iCCP", b"icc\x00\x00" + flood)):
            data = png_of(10, 10, extra=[chunk], body=body)
            with suppress(ImageError):
                assert load_image(data).size == (10, 10)

    def test_limits_below_one_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="max_frames"):
            ImageLimits(max_frames=0)


class TestOddPictures:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
    def test_exif_orientation_is_applied(self, orientation: int, format_name: str) -> None:
        from PIL import ImageOps

        options: dict[str, object] = {"lossless": True} if format_name == "WEBP" else {}
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(PICTURE, format_name, exif=exif, **options)
        tagged = PICTURE.copy()
        tagged.getexif()[0x0112] = orientation
        assert same(load_image(data), ImageOps.exif_transpose(tagged))
        assert load_image(with_orientation(PICTURE, orientation)).size == (
            (30, 40) if orientation > 4 else (40, 30)
        )

    def test_damaged_exif_costs_only_the_orientation(self) -> None:
        notices: list[str] = []
        data = bytearray(with_orientation(PICTURE, 6))
        start = data.index(b"Exif\x00\x00") + 6
        data[start : start + 8] = b"\xff" * 8
        assert load_image(bytes(data), on_notice=notices.append).size == (40, 30)
        assert len(notices) <= 1

    def test_transparent_parts_become_white(self) -> None:
        image = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
        image.putpixel((1, 0), (10, 20, 30, 0))
        image.putpixel((2, 0), (0, 0, 0, 128))
        loaded = load_image(encode(image))
        assert loaded.getpixel((0, 0)) == (10, 20, 30)
        assert loaded.getpixel((1, 0)) == (255, 255, 255)
        assert loaded.getpixel((2, 0)) == (127, 127, 127)

    def test_an_opaque_alpha_channel_changes_nothing(self) -> None:
        assert same(load_image(encode(PICTURE.convert("RGBA"))), PICTURE)

    def test_palette_grey_and_rgb_with_a_transparent_colour_become_white_there(self) -> None:
        palette = Image.new("P", (2, 1), 1)
        palette.putpalette([0, 0, 0, 200, 100, 50] + [0] * 750)
        palette.putpixel((0, 0), 0)
        for transparency in (0, bytes([0, 255])):
            loaded = load_image(encode(palette, transparency=transparency))
            assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]
        grey = Image.new("L", (2, 1), 90)
        grey.putpixel((0, 0), 7)
        loaded = load_image(encode(grey, transparency=7))
        assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (90, 90, 90)]
        rgb = Image.new("RGB", (2, 1), (1, 2, 3))
        rgb.putpixel((1, 0), (4, 5, 6))
        loaded = load_image(encode(rgb, transparency=(1, 2, 3)))
        assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (4, 5, 6)]
        assert load_image(encode(Image.new("LA", (1, 1), (9, 0)))).getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize("format_name", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bit_grey_is_scaled_and_not_clipped(self, format_name: str) -> None:
        values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
        image = Image.fromarray(values)
        loaded = load_image(encode(image, format_name))
        assert np.asarray(loaded)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]

    def test_grey_without_a_defined_white_is_refused(self) -> None:
        refuse(encode(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), "TIFF"), "floating-point")
        refuse(encode(Image.fromarray(np.full((2, 2), 10**6, dtype=np.int32)), "TIFF"), "32-bit")

    def test_cmyk_one_bit_and_profiled_pictures_are_converted(self) -> None:
        cmyk = PICTURE.convert("CMYK")
        assert same(load_image(encode(cmyk, "TIFF")), cmyk.convert("RGB"))
        assert load_image(encode(cmyk, "JPEG")).mode == "RGB"
        bilevel = PICTURE.convert("1")
        assert same(load_image(encode(bilevel)), bilevel.convert("RGB"))
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        assert same(load_image(encode(PICTURE, icc_profile=profile)), PICTURE)

    @pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_only_the_first_frame_is_used_and_this_is_said(self, format_name: str) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        options: dict[str, object] = {"lossless": True} if format_name == "WEBP" else {}
        data = encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
        notices: list[str] = []
        assert load_image(data, on_notice=notices.append).getpixel((4, 4)) == (255, 0, 0)
        assert notices == ["The picture has 3 frames; only the first is used."]

    def test_without_a_listener_the_log_says_it(self, caplog: pytest.LogCaptureFixture) -> None:
        frames = [Image.new("L", (4, 4), shade) for shade in (0, 99)]
        load_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
        assert "only the first" in caplog.text

    @pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    def test_every_format_gives_the_originals_bytes_under_any_name(
        self, format_name: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "picture.txt"
        path.write_bytes(encode(PICTURE, format_name))
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            assert same(load_image(path), opened.convert("RGB"))

    def test_the_originals_own_conversion_can_be_asked_for(self) -> None:
        assert same(load_image(with_orientation(PICTURE, 6, "PNG"), as_original=True), PICTURE)
        hidden = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
        assert load_image(encode(hidden), as_original=True).getpixel((0, 0)) == (10, 20, 30)
