"""What kind of picture some bytes are, told from their first bytes and never from a name.

Place in the flow: below `sources` and `images`.
"""

from __future__ import annotations

import re
from typing import Final

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. PPM stands for its whole family (PBM, PGM, PPM)."""

_SIGNATURES: Final = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{4}\x00\x00\x00\x00", re.DOTALL)),
    ("TIFF", re.compile(rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+")),
    ("PPM", re.compile(rb"P[1-6][\s#]")),
)
# Named only to say something helpful: none of these is read.
_REFUSED_SIGNATURES: Final = (
    (
        "an SVG drawing",
        re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg|<svg)", re.DOTALL | re.I),
    ),
    ("a web page", re.compile(rb"\s*<(!doctype html|html|head|body)", re.I)),
    ("a PDF document", re.compile(rb"%PDF")),
    ("a PostScript drawing", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("an AVIF or HEIC picture", re.compile(rb"....ftyp(avif|avis|heic|heix|hevc|mif1|msf1)", re.DOTALL)),
    ("a video", re.compile(rb"....ftyp|\x1a\x45\xdf\xa3", re.DOTALL)),
    ("a JPEG 2000 picture", re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51")),
    ("a JPEG XL picture", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL ")),
    ("a FITS file", re.compile(rb"SIMPLE  =")),
    ("a Photoshop file", re.compile(rb"8BPS")),
    ("an icon", re.compile(rb"\x00\x00[\x01\x02]\x00")),
)
_SIGNATURE_BYTES: Final = 512


def picture_format(data: bytes) -> str | None:
    """Return which of FORMATS the bytes begin like, or None."""
    return next((name for name, signature in _SIGNATURES if signature.match(data)), None)


def describe_refused(data: bytes) -> str:
    """Return what the bytes are, in words, when they are none of FORMATS."""
    if not data:
        return "empty"
    head = data[:_SIGNATURE_BYTES]
    return next((label for label, signature in _REFUSED_SIGNATURES if signature.match(head)), "not a picture")
