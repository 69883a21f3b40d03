"""One loader for pictures: path, data URI, base64, bytes, PIL image or (where allowed) URL in, RGB out.

Place in the flow: the first thing that touches a user's picture; `pixels.ImageProcessor` comes next.

The bytes decide what a picture is, never its name. Only seven formats are read, each by its own PIL plugin,
so that the dozens of others PIL knows (EPS, FITS, PSD, ...) are out of an attacker's reach. The plugins are
called directly and not through `Image.open`: the size is then known, and checked against the limits, before
anything is decoded, and PIL's own bomb warning cannot appear.

The original did `Image.open(path).convert("RGB")`. For an opaque 8-bit picture without EXIF orientation this
loader gives the same bytes; where it means to differ is in docs/deviations.md (orientation, transparency,
16 bit), and `as_original=True` turns these three off.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from llava.errors import ImageError, ImageLimitError
from llava.log import TERMINAL_ONLY, get_logger
from llava.processing.fetch import fetch_picture
from llava.processing.formats import FORMATS, describe_refused, picture_format
from llava.processing.sources import DEFAULT_LIMITS, ImageLimits, read_source

__all__ = ["DEFAULT_LIMITS", "FORMATS", "ImageLimits", "ImageSource", "load_image", "to_rgb"]

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image
"""A path, data URI, base64 text or URL (str), a path object, the bytes of a file, or a PIL image."""

_logger = get_logger(__name__)
_PLUGINS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
# What PIL's plugins raise on bytes that are not what they expect; `Warning` is there for programs that turn
# warnings into errors. SyntaxError is PIL's own for a broken header.
_DECODING_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
    Warning,
)
_ORIENTATION_TAG: Final = 0x0112
_TRANSPOSITIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_url: bool = False,
    allow_path: bool = True,
    as_original: bool = False,
    on_notice: Callable[[str], None] | None = None,
    fetch: Callable[[str, int], bytes] = fetch_picture,
) -> Image.Image:
    """Load a picture from wherever it is and return it as a decoded PIL image of mode RGB, upright.

    A text is a data URI, a URL, an existing path or base64, tried in this order. Text that came over a
    network must be given with `allow_path=False`, or it could name a file of this machine. Transparent parts
    become white, 16-bit grey is scaled to 8 bit, and of several frames the first is taken and said so: to
    `on_notice`, or else to the log. `as_original` keeps the original's plain conversion instead (no
    orientation, hidden colours of transparent parts). Raises ImageError when this is no picture,
    ImageLimitError when it is over a limit.
    """
    notice = on_notice or _notice
    if isinstance(source, Image.Image):
        return _finish(source, "The picture", limits, as_original=as_original, notice=notice)
    data, name = read_source(source, limits, allow_url=allow_url, allow_path=allow_path, fetch=fetch)
    image = _open(data, name)
    return _finish(image, name, limits, as_original=as_original, notice=notice)


def _notice(text: str) -> None:
    """Log what is odd about a picture; it may say the picture's name, which is for no file of a server."""
    _logger.warning("%s", text, extra=TERMINAL_ONLY)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB: transparent parts become white, 16-bit grey is scaled to 8 bit.

    An RGB picture is returned as it is. Raises ImageError for a mode that has no defined colours (32-bit or
    floating-point grey).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _grey_from_integers(image).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            "The picture holds floating-point grey, which has no defined white",
            remedy="Save it with 8 bit a channel.",
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header by the one plugin that the first bytes call for; nothing is decoded."""
    format_name = picture_format(data)
    if format_name is None:
        raise ImageError(
            f"{name} is {describe_refused(data)}", remedy=f"Use one of these formats: {', '.join(FORMATS)}."
        )
    try:
        return _PLUGINS[format_name](io.BytesIO(data))
    except _DECODING_ERRORS as error:
        raise _broken(name, format_name, error) from error


def _finish(
    image: Image.Image, name: str, limits: ImageLimits, *, as_original: bool, notice: Callable[[str], None]
) -> Image.Image:
    """Check the limits, decode, turn upright and convert."""
    _check_size(image, name, limits)
    format_name = image.format or "picture"
    try:
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > limits.max_frames:
            raise ImageLimitError(
                f"{name} has {num_frames} frames, over the limit of {limits.max_frames}",
                remedy="Give a single picture, or raise max_frames.",
            )
        image.load()
        # A few formats (GIF, TIFF) settle the size while they decode.
        _check_size(image, name, limits)
        if num_frames > 1:
            notice(f"{name} has {num_frames} frames; only the first is used.")
        if as_original:
            if "transparency" in image.info:
                image = image.copy()
                del image.info["transparency"]
            plain = image.convert("RGB")
            # Or whoever is given the picture would turn it upright after all.
            plain.info.clear()
            return plain
        return to_rgb(_upright(image, name, notice))
    except _DECODING_ERRORS as error:
        raise _broken(name, format_name, error) from error


def _check_size(image: Image.Image, name: str, limits: ImageLimits) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels", remedy="Give another picture.")
    if width * height > limits.max_pixels:
        raise ImageLimitError(
            f"{name} has {width} x {height} pixels, over the limit of {limits.max_pixels / 1e6:g} million",
            remedy="Make it smaller, or raise max_pixels.",
        )
    ratio = max(width, height) / min(width, height)
    if ratio > limits.max_aspect_ratio:
        raise ImageLimitError(
            f"{name} is {width} x {height} pixels, a ratio of {ratio:.0f}, over the limit of "
            f"{limits.max_aspect_ratio:g}",
            remedy="Cut it into pieces, or raise max_aspect_ratio.",
        )


def _broken(name: str, format_name: str, error: Exception) -> ImageError:
    """Say what is wrong without PIL's own words, which may hold object addresses."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageLimitError(
            f"{name} ({format_name}) holds a frame far larger than itself", remedy="Save it anew."
        )
    text = str(error).lower()
    is_cut = isinstance(error, EOFError) or any(
        word in text for word in ("truncated", "end of file", "not enough")
    )
    fault = "is cut off: the end of the file is missing" if is_cut else "is broken and cannot be decoded"
    return ImageError(f"{name} ({format_name}) {fault}", remedy="Get the file again, or save it anew.")


def _upright(image: Image.Image, name: str, notice: Callable[[str], None]) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block costs the orientation and not the picture."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODING_ERRORS:
        notice(f"{name} has damaged EXIF data; its orientation is unknown.")
        return image
    method = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _grey_from_integers(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (white is 65535) to 8 bit, to the nearest; PIL's own conversion clips at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            "The picture holds 32-bit grey, which has no defined white",
            remedy="Save it with 8 or 16 bit a channel.",
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
