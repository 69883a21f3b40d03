"""Pictures made on the spot: no test needs a binary file, and a bomb is a header with nothing behind it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Return an RGB picture of random bytes: every pixel matters to a comparison."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    """Return the bytes of the picture as a file of `format_name`."""
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one PNG chunk with a right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, *, extra: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> bytes:
    """Return a PNG that claims to be width x height, 8-bit RGB, with a body that is almost none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def with_orientation(image: Image.Image, orientation: int, format_name: str = "JPEG") -> bytes:
    """Return the picture with an EXIF orientation that a viewer must undo."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"quality": 95} if format_name == "JPEG" else {}
    return encode(image, format_name, exif=exif, **options)
