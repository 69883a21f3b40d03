"""From whatever names a picture (path, data URI, base64, bytes, URL) to the bytes of its file, within limits.

Place in the flow: below `images.load_image`, which decodes the bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llava.errors import ConfigError, ImageError, ImageLimitError
from llava.processing.formats import picture_format

_DATA_URI: Final = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(;[^;,]*)*),", re.I)
_SHORTEST_BASE64: Final = 32
"""Shorter text is taken for a path: no picture file has fewer than 24 bytes."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost; checked on the header, before anything is decoded."""

    max_bytes: int = 64 * 2**20
    """Size of the file in bytes. A 50-megapixel photo is about 25 MB as JPEG."""
    max_pixels: int = 80_000_000
    """Width times height. Decoded this is 320 MB; below PIL's own alarm of 89 million."""
    max_aspect_ratio: float = 200.0
    """Long side over short side. Beyond it a padded picture is a line one or two pixels wide."""
    max_frames: int = 1000
    """Frames or pages in the file; only the first is used."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_aspect_ratio", "max_frames"):
            value = getattr(self, name)
            if not value >= 1:
                raise ConfigError(f"{name} is {value!r}", remedy="Use a number from 1 upward.")


DEFAULT_LIMITS: Final = ImageLimits()


def read_source(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    limits: ImageLimits,
    *,
    allow_url: bool,
    allow_path: bool,
    fetch: Callable[[str, int], bytes],
) -> tuple[bytes, str]:
    """Return the bytes of the picture file and what to call it in messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_bytes(len(source), "The picture", limits)
        return bytes(source), "The picture"
    if isinstance(source, os.PathLike):
        return _read_file(Path(source), limits)
    if not isinstance(source, str):
        raise ImageError(
            f"A picture cannot be loaded from {type(source).__name__}",
            remedy="Give a path, data URI, base64 text, bytes or a PIL image.",
        )
    if source[:5].lower() == "data:":
        return _decode_data_uri(source, limits), "The picture"
    if re.match(r"[a-z][a-z0-9+.-]*://", source[:32], re.I):
        return _read_url(source, limits, allow_url=allow_url, fetch=fetch), "The picture"
    if allow_path and os.path.exists(source):
        return _read_file(Path(source), limits)
    if len(source) >= _SHORTEST_BASE64:
        data = _decode_base64(source, limits)
        if data is not None and (not allow_path or picture_format(data) is not None):
            return data, "The picture"
    if not allow_path:
        raise ImageError("The picture is no valid base64 text", remedy="Send it as a data URI or base64.")
    shown = source if len(source) <= 200 else f"{source[:100]}... ({len(source)} characters)"
    raise ImageError(
        f"{shown!r} is no picture: no such file, and not base64 of a picture", remedy="Check the path."
    )


def _read_url(url: str, limits: ImageLimits, *, allow_url: bool, fetch: Callable[[str, int], bytes]) -> bytes:
    if not url[:8].lower().startswith(("http://", "https://")):
        raise ImageError(
            f"Pictures are not loaded by {url.split(':', 1)[0][:32]!r}",
            remedy="Use an http or https address or a path.",
        )
    if not allow_url:
        raise ImageError(
            "Loading pictures from the web is switched off", remedy="Download the picture and give its path."
        )
    data = fetch(url, limits.max_bytes)
    _check_bytes(len(data), "The picture", limits)
    return data


def _read_file(path: Path, limits: ImageLimits) -> tuple[bytes, str]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path} is a folder, not a picture", remedy="Give the path of one picture.")
        # A pipe or device could block for ever or never end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is not a regular file", remedy="Give the path of a picture file.")
        _check_bytes(status.st_size, str(path), limits)
        with path.open("rb") as stream:
            data = stream.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist", remedy="Check the path.") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise ImageError(f"{path} cannot be read: {reason}", remedy="Check the path.") from error
    _check_bytes(len(data), str(path), limits)
    return data, str(path)


def _decode_data_uri(uri: str, limits: ImageLimits) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None or ";base64" not in match["parameters"].lower():
        raise ImageError("The data URI is not base64", remedy="Write it as data:image/png;base64,...")
    declared = match["type"].strip().lower()
    if declared not in ("", "application/octet-stream") and not declared.startswith("image/"):
        raise ImageError(
            f"The data URI declares {declared[:40]!r}, not a picture", remedy="Use image/png or the like."
        )
    data = _decode_base64(uri[match.end() :], limits)
    if data is None:
        raise ImageError(
            "The data URI holds broken base64", remedy="Encode the file's bytes with standard base64."
        )
    return data


def _decode_base64(text: str, limits: ImageLimits) -> bytes | None:
    """Decode standard or URL-safe base64; line breaks and missing padding are forgiven; None if broken."""
    _check_bytes(len(text) * 3 // 4 - 2, "The picture", limits)
    compact = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_bytes(num_bytes: int, name: str, limits: ImageLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise ImageLimitError(
            f"{name} has {num_bytes / 2**20:.1f} MiB, over the limit of {limits.max_bytes / 2**20:.1f} MiB",
            remedy="Make it smaller, or raise max_bytes.",
        )
