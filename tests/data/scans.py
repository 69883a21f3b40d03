"""Scans made of given lengths, for the tests of orders and plans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llava.data.scan import Scan


def scan_of(
    lengths: Sequence[int], *, words: Sequence[int] | None = None, unusable: Sequence[int] = ()
) -> Scan:
    """Return a scan of samples of the given lengths; every second has a picture unless `words` says."""
    tokens = np.array(lengths, dtype=np.int32)
    is_usable = np.ones(len(tokens), dtype=np.bool_)
    is_usable[list(unusable)] = False
    signs = np.where(np.arange(len(tokens)) % 2, 1, -1)
    return Scan(
        tokens=tokens,
        targets=np.maximum(tokens // 4, 1).astype(np.int32),
        pictures=np.zeros_like(tokens),
        words=(tokens * signs if words is None else np.array(words)).astype(np.int32),
        is_usable=is_usable,
        is_truncated=np.zeros(len(tokens), dtype=np.bool_),
        is_masked=np.zeros(len(tokens), dtype=np.bool_),
        bad=(),
    )
