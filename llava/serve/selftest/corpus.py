"""Hostile pictures, made when they are needed: none of them lies anywhere as a file.

What may be refused or read is up to the server; what claims to be read is read to its end.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import Final

from PIL import Image, ImageDraw

_EXIF: Final = b"Exif\0\0"


def too_large() -> dict[str, bytes]:
    """Return pictures that are far larger than their files."""
    return {
        "PNG of 30000 x 30000": png(30_000, 30_000, _zeros(30_000 * (1 + 30_000 // 8))),
        "PNG that says 2^31 - 1 squared": png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0" * 1000)),
        "GIF of 65535 x 65535": _gif(65_535, 65_535, 1),
        "BMP of 2^31 - 1 squared": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack(
            "<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0
        ),
        "PPM of 10^6 squared": b"P6 1000000 1000000 255\n" + b"\0" * 100,
        "TIFF of 10^5 squared": _tiff(100_000, 100_000),
        "WebP of 16383 x 16383": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18)
        + b"\x2f" + struct.pack("<I", (16_382 << 14) | 16_382) + b"\0" * 13,
    }  # fmt: skip


def odd_shapes() -> dict[str, tuple[bytes, bool]]:
    """Return pictures of strange shapes, and whether there is anything to see in them."""
    return {
        "1 x 1": (saved(Image.new("RGB", (1, 1))), True),
        "1 x 2": (saved(Image.new("L", (1, 2))), True),
        "0 x 10": (png(0, 10, zlib.compress(b"\0" * 10)), False),
        "10 x 0": (png(10, 0, zlib.compress(b"\0" * 10)), False),
        "1 x 60000": (saved(Image.new("L", (1, 60_000))), True),
        "60000 x 1": (saved(Image.new("L", (60_000, 1))), True),
        "52800 x 44": (saved(Image.new("L", (52_800, 44))), True),
        "PPM with a negative width": (b"P6 -5 5 255\n" + b"\0" * 75, False),
    }


def broken() -> dict[str, bytes]:
    """Return what is no picture, or no whole one: to be refused."""
    plain = noise(64, 48)
    return {
        "truncated PNG": saved(plain)[:-300],
        "PNG without its data": saved(plain)[:60],
        "truncated JPEG": saved(plain, "JPEG")[:200],
        "truncated WebP": saved(plain, "WEBP")[:100],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "SVG with an outer entity": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b"<svg>&x;</svg>",
        "FITS": b"SIMPLE  =                    T" + b" " * 2850,
        "gzip in FITS": b"XTENSION= 'BINTABLE'" + b" " * 2860,
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "PDF": b"%PDF-1.7\n",
        "HTML": b"<html><script>alert(1)</script></html>",
        "pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
        "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\0" * 50,
        "random bytes behind a PNG's first": saved(plain)[:8] + bytes(range(256)) * 4,
        "random bytes behind a JPEG's first": b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4,
        "TIFF whose directory leads to itself": b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 8),
        "nothing": b"",
    }  # fmt: skip


def bombs() -> dict[str, bytes]:
    """Return pictures with something that grows without end inside: to be read without it, or refused."""
    plain = noise(64, 48)
    text = b"k\0\0" + _zeros(100_000_000)
    endless = _EXIF + b"II*\0\x08\0\0\0" + struct.pack("<H", 0xFFFF) + b"\xff" * 500
    circle = _EXIF + b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    return {
        "GIF of 10^4 frames": _gif(4, 4, 10_000),
        "TIFF of 50 pages": saved(plain, "TIFF", save_all=True, append_images=[plain] * 49),
        "animated PNG": saved(plain, save_all=True, append_images=[noise(64, 48)] * 20),
        "PNG with a text bomb": _with_chunk(saved(plain), b"zTXt", text),
        "PNG with a profile bomb": _with_chunk(saved(plain), b"iCCP", text),
        "JPEG whose EXIF has 65535 fields": saved(plain, "JPEG", exif=endless),
        "JPEG whose EXIF leads to itself": saved(plain, "JPEG", exif=circle),
        "JPEG with 4 MB of profile": saved(plain, "JPEG", icc_profile=b"\0" * 4_000_000),
    }


def unusual() -> dict[str, bytes]:
    """Return honest pictures of rare kinds: to be answered."""
    plain = noise(64, 48)
    return {
        "CMYK": saved(plain.convert("CMYK"), "JPEG"),
        "16 bit": saved(Image.new("I;16", (64, 48), 40_000)),
        "palette with transparency": saved(plain.convert("P"), transparency=3),
        "grey with alpha": saved(plain.convert("LA")),
        "1 bit": saved(plain.convert("1")),
        "PNG called JPEG": saved(plain),
        "progressive JPEG": saved(plain, "JPEG", progressive=True),
        "WebP": saved(plain, "WEBP"),
    }


def polyglots() -> dict[str, bytes]:
    """Return files that are a picture to one reader and a page or script to another."""
    page = b"<html><body><script>alert(1)</script></body></html>"
    plain = noise(64, 48)
    comment = struct.pack(">H", len(page) + 2) + page
    jpeg = saved(plain, "JPEG")
    return {
        "JPEG with a page behind": jpeg + page,
        "JPEG with a page in its comment": jpeg[:2] + b"\xff\xfe" + comment + jpeg[2:],
        "PNG with a page in a text": _with_chunk(saved(plain), b"tEXt", b"k\0" + page),
        "GIF that is a script": b"GIF89a" + saved(plain.convert("P"), "GIF")[6:] + b"=1;alert(1)//",
        "BMP with a page behind": saved(plain, "BMP") + page,
    }


def with_words(words: str) -> bytes:
    """Return a picture in which something is written."""
    image = Image.new("RGB", (336, 336), "white")
    ImageDraw.Draw(image).multiline_text((8, 120), words, fill="black", font_size=18)
    return saved(image)


def noise(width: int, height: int) -> Image.Image:
    """Return a picture like no other, in this run and all others."""
    return Image.frombytes("RGB", (width, height), os.urandom(3 * width * height))


def saved(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    written = io.BytesIO()
    image.save(written, format_name, **options)
    return written.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    """Return a PNG of 1 bit whose header says any size."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _zeros(num_bytes: int) -> bytes:
    """Return so many zeros, compressed."""
    return zlib.compress(bytes(num_bytes), 9)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _with_chunk(data: bytes, name: bytes, added: bytes) -> bytes:
    """Put a chunk behind the header of a PNG, which ends with its 33rd byte."""
    return data[:33] + _chunk(name, added) + data[33:]


def _gif(width: int, height: int, num_frames: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * num_frames + b";"


def _tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 4, height), (279, 4, 100)]  # fmt: skip
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + fields + b"\0\0\0\0" + b"\0" * 100
