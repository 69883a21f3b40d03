"""Whether a picture file is there, is what its name says, and can be decoded; and what it looks like.

After `samples`; runs in worker processes, one call for each file. A picture is read by the trainer's own
loader, so what passes here loads there.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

from llava.data.doctor.perceptual_hash import looks
from llava.errors import ImageError, ImageLimitError
from llava.processing.formats import picture_format
from llava.processing.images import DEFAULT_LIMITS, load_image

_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
_EXTENSIONS: Final = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "ppm": "PPM",
    "pgm": "PPM",
    "pbm": "PPM",
}
PICTURE_SUFFIXES: Final = tuple(f".{extension}" for extension in _EXTENSIONS)


@dataclass(frozen=True)
class PictureLimits:
    """From where on a picture is worth a warning."""

    min_side: int = 16
    """Pixels; less than one patch of the vision towers, and what icons and tracking pixels have."""
    max_aspect_ratio: float = 10.0
    """Long side over short side; padded to a square, the rest is 90 % border."""
    max_pixels: int = 25_000_000
    """Width times height; decoding more takes a loader about half a second."""


class PictureFacts(NamedTuple):
    """What is known about one picture file."""

    faults: tuple[tuple[str, str], ...] = ()
    """(code, detail)."""
    format: str = ""
    """Empty: it could not be decoded."""
    width: int = 0
    height: int = 0
    digest: int = 0
    """64 bits of the hash of the bytes."""
    edges: int = 0
    layout: int = 0
    is_flat: bool = True
    real_path: str = ""
    """As it is spelled on disk, where the data spells it otherwise."""

    @property
    def is_readable(self) -> bool:
        """Whether it was decoded."""
        return bool(self.format)


def is_encodable(text: str) -> bool:
    """Tell whether a text has no half characters, which no file name and no UTF-8 file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def locate(name: str, folder: Path, *, is_limit: bool) -> tuple[str, list[tuple[str, str]]]:
    """Return the path of a picture and the faults of its name; an empty path where there is none to look at.

    folder: where relative names begin. is_limit: whether a path must not lead out of it.
    """
    if name[:5].lower() == "data:":
        return name, []
    if name[:7].lower() == "file://":
        name = name[7:]
    elif _ADDRESS.match(name):
        return "", [("picture-address", f"{name[:100]!r} is not loaded from the web")]
    if "\0" in name or not is_encodable(name):
        return "", [("picture-missing", f"{name[:100]!r} cannot be a file name")]
    path = os.path.normpath(os.path.join(folder, name))
    base = os.path.normpath(folder)
    faults = []
    is_inside = os.path.commonpath([path, base]) == base if os.path.isabs(base) else True
    if is_limit and not is_inside:
        return "", [("picture-escapes", f"{name[:100]!r} leads out of {folder}")]
    if os.path.isabs(name):
        faults.append(("picture-absolute", f"{name[:100]!r} holds on this machine alone"))
    return path, faults


def examine_picture(path: str, limits: PictureLimits) -> PictureFacts:
    """Read one picture file, or data URI, and say what is wrong with it."""
    if path[:5].lower() == "data:":
        return examine_bytes(path, "", limits)
    try:
        size = os.stat(path).st_size
    except OSError:
        return _absent(path)
    if not size and os.path.isfile(path):
        return PictureFacts((("picture-zero-bytes", "the file has 0 bytes"),))
    if size > DEFAULT_LIMITS.max_bytes or not os.path.isfile(path):
        return examine_bytes(path, path, limits)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return PictureFacts((("picture-unreadable", f"it cannot be read: {error.strerror}"),))
    return examine_bytes(data, path, limits)


def examine_bytes(source: bytes | str, path: str, limits: PictureLimits) -> PictureFacts:
    """Decode a picture; `path` is its name, for its extension."""
    notices: list[str] = []
    data = source if isinstance(source, bytes) else source.encode("utf-8", "surrogatepass")
    try:
        image = load_image(source, on_notice=notices.append)
    except ImageLimitError as error:
        return PictureFacts((("picture-over-limit", _short(error, path)),))
    except ImageError as error:
        code = "picture-truncated" if "is cut off" in error.cause else "picture-broken"
        if isinstance(source, bytes) and picture_format(source) is None:
            code = "picture-unreadable"
        return PictureFacts(((code, _short(error, path)),))
    seen = looks(image)
    format_name = (picture_format(source) if isinstance(source, bytes) else None) or "picture"
    faults = [*_name_faults(format_name, path), *_size_faults(image, limits)]
    faults += [("picture-animated", notice) for notice in notices if " frames" in notice]
    if seen.is_flat and min(image.size) >= limits.min_side:
        faults.append(("picture-flat", f"{image.width} x {image.height} pixels of one colour"))
    return PictureFacts(
        faults=tuple(faults),
        format=format_name,
        width=image.width,
        height=image.height,
        digest=int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"),
        edges=seen.edges,
        layout=seen.layout,
        is_flat=seen.is_flat,
    )


def _short(error: ImageError, path: str) -> str:
    """Return the cause without the path, which the finding names anyway."""
    return error.cause.replace(path, "it") if path else error.cause


def _name_faults(format_name: str, path: str) -> list[tuple[str, str]]:
    extension = path.rpartition(".")[2].lower() if "." in os.path.basename(path) else ""
    named = _EXTENSIONS.get(extension)
    if named is None or named == format_name or format_name == "picture":
        return []
    return [("picture-extension", f"the name ends in .{extension} and the file is {format_name}")]


def _size_faults(image: Image.Image, limits: PictureLimits) -> list[tuple[str, str]]:
    size = f"{image.width} x {image.height} pixels"
    faults = []
    if min(image.size) < limits.min_side:
        faults.append(("picture-tiny", size))
    if max(image.size) > limits.max_aspect_ratio * min(image.size):
        faults.append(("picture-aspect", f"{size}, {max(image.size) / min(image.size):.1f} to 1"))
    if image.width * image.height > limits.max_pixels:
        faults.append(("picture-large", size))
    return faults


def _absent(path: str) -> PictureFacts:
    """Look for the same name in other upper and lower case."""
    real = _respelled(path)
    if real:
        facts = (("picture-case", f"on disk it is {os.path.basename(real)!r}"),)
        return PictureFacts(facts, real_path=real)
    return PictureFacts((("picture-missing", "no such file"),))


def _respelled(path: str) -> str:
    parts = Path(path).parts
    real = parts[0]
    for part in parts[1:]:
        if not os.path.lexists(os.path.join(real, part)):
            names = _names_in(real).get(part.lower())
            if names is None:
                return ""
            part = names
        real = os.path.join(real, part)
    return real


@functools.lru_cache(maxsize=8)
def _names_in(folder: str) -> dict[str, str]:
    """Return the names in a folder by their lower case."""
    try:
        return {name.lower(): name for name in os.listdir(folder)}
    except OSError:
        return {}
