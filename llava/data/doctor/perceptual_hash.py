"""What a picture looks like in 128 bits, and which pictures look alike.

Two classic hashes side by side: differences between neighbours (dHash: edges) and the low frequencies
of the cosine transform (pHash: layout). Neither changes much when a picture is scaled, saved as JPEG or
made brighter. Pictures whose hashes are close are then compared as 32 x 32 thumbnails, which settles it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE: Final = 32
"""Pixels a side of the thumbnail that hashes are made of."""
MAX_EACH: Final = 16
"""Bits in which each hash of a candidate may differ; small drawings saved as coarse JPEG need that many."""
MAX_BOTH: Final = 24
"""Bits in which both together may differ."""
_MAX_DIFFERENCE: Final = 9.0
"""Mean difference of two thumbnails of the same picture, of 255."""
_MIN_CORRELATION: Final = 0.97
_FLAT: Final = 2.0
"""Standard deviation of a thumbnail below which there is nothing to hash."""
_MARGIN: Final = 0.05
_MAX_ALL_PAIRS: Final = 30_000
_MAX_BUCKET: Final = 200
_BLOCK: Final = 256

_Hashes = npt.NDArray[np.uint64]
Thumbnail = npt.NDArray[np.float32]


class Looks(NamedTuple):
    """What a picture looks like."""

    edges: int
    """dHash, 64 bits."""
    layout: int
    """pHash, 64 bits."""
    is_flat: bool
    """Whether it is of one colour, so that its hashes say nothing."""


def _cosines() -> npt.NDArray[np.float64]:
    frequencies = np.arange(9)[:, None]
    table: npt.NDArray[np.float64] = np.cos(np.pi / SIDE * (np.arange(SIDE)[None, :] + 0.5) * frequencies)
    return table  # [9, 32]


_COSINES: Final = _cosines()


def thumbnail(image: Image.Image) -> Thumbnail:
    """Return float32[32, 32, 3], 0 to 255, RGB."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small, dtype=np.float32)


def looks(image: Image.Image) -> Looks:
    """Hash a picture."""
    grey = thumbnail(image).astype(np.float64) @ np.array([0.299, 0.587, 0.114])  # [32, 32]
    small = np.asarray(
        Image.fromarray(grey.astype(np.float32)).resize((9, 8), Image.Resampling.BOX), dtype=np.float64
    )
    # Drawings have wide flat parts, where noise would decide: a bit takes more than a share of the contrast.
    edges = small[:, 1:] > small[:, :-1] + _MARGIN * grey.std()
    low = (_COSINES @ grey @ _COSINES.T)[:8, :9].flatten()[1:65]
    return Looks(_bits(edges.flatten()), _bits(low > _MARGIN * low.std()), bool(grey.std() < _FLAT))


def _bits(flags: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags[:64]).tobytes(), "big")


def is_same_picture(one: Thumbnail, two: Thumbnail) -> bool:
    """Tell whether two thumbnails show one picture."""
    # A brighter copy is a copy: the mean is taken out.
    first, second = (x - x.mean() for x in (one, two))
    if float(np.abs(first - second).mean()) > _MAX_DIFFERENCE:
        return False
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return scale > 0 and float((first * second).sum()) / scale >= _MIN_CORRELATION


def popcount(values: _Hashes) -> npt.NDArray[np.uint8]:
    """Count the bits that are set in each value."""
    if hasattr(np, "bitwise_count"):
        counted: npt.NDArray[np.uint8] = np.bitwise_count(values)
        return counted
    table = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)
    as_bytes = np.ascontiguousarray(values)[..., None].view(np.uint8)
    summed: npt.NDArray[np.uint8] = table[as_bytes].sum(axis=-1, dtype=np.uint8)
    return summed


def similar(hashes: _Hashes, others: _Hashes) -> list[tuple[int, int]]:
    """Return (row of `hashes`, row of `others`) wherever two pictures may be one.

    hashes, others: uint64[n, 2] and uint64[m, 2], columns edges and layout.
    """
    found: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        near = _near(hashes[start : start + _BLOCK, None, :], others[None, :, :])
        rows, columns = np.nonzero(near)
        found += zip((rows + start).tolist(), columns.tolist(), strict=True)
    return found


def similar_within(hashes: _Hashes) -> list[tuple[int, int]]:
    """Return pairs (earlier, later) of rows that may be one picture.

    hashes: uint64[n, 2]. All pairs are compared up to 30,000 pictures; beyond, those that agree in at least
    one of eight 16-bit parts, which finds every pair that differs in up to 7 bits and most others.
    """
    if len(hashes) <= _MAX_ALL_PAIRS:
        return _all_pairs(hashes)
    found: set[tuple[int, int]] = set()
    for column in (0, 1):
        for shift in (0, 16, 32, 48):
            keys = (hashes[:, column] >> np.uint64(shift)) & np.uint64(0xFFFF)
            order = np.argsort(keys, kind="stable")
            starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][0] + np.uint64(1)))
            for rows in np.split(order, starts[1:]):
                # Parts that hundreds share, such as white margins, tell nothing.
                if 1 < len(rows) <= _MAX_BUCKET:
                    pairs = _all_pairs(hashes[rows])
                    found.update((int(rows[one]), int(rows[two])) for one, two in pairs)
    return sorted((min(pair), max(pair)) for pair in found)


def _all_pairs(hashes: _Hashes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None, :]
        rows, columns = np.nonzero(_near(block, hashes[None, start:, :]))
        is_later = columns > rows
        found += zip((rows[is_later] + start).tolist(), (columns[is_later] + start).tolist(), strict=True)
    return found


def _near(one: _Hashes, two: _Hashes) -> npt.NDArray[np.bool_]:
    edges = popcount(one[..., 0] ^ two[..., 0])
    layout = popcount(one[..., 1] ^ two[..., 1])
    near: npt.NDArray[np.bool_] = (edges <= MAX_EACH) & (layout <= MAX_EACH) & (edges + layout <= MAX_BOTH)
    return near
