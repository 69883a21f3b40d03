"""Keys and values of earlier answers, found again by how their prompts begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llava.engine.prompt import shared_length
from llava.engine.runner import Stored

MIN_SHARED_TOKENS = 16
"""Shorter beginnings are computed faster than they are looked after."""
MAX_ENTRIES = 256
"""Stored prefixes, all of which are compared with every new prompt."""


@dataclass(eq=False)
class _Entry:
    key: np.ndarray
    stored: Stored


class PrefixCache:
    """Stored prefixes within limits; the one unused longest is dropped first."""

    def __init__(self, drop: Callable[[Stored], None], *, max_bytes: int | None) -> None:
        """`drop` frees a stored prefix; max_bytes: 0 stores nothing, None what the runner has memory for."""
        self._drop = drop
        self._max_bytes = max_bytes
        self._entries: list[_Entry] = []  # least recently used first
        self.num_bytes = 0

    def __len__(self) -> int:
        """How many prefixes are stored."""
        return len(self._entries)

    @property
    def is_enabled(self) -> bool:
        """Whether anything may be stored at all."""
        return self._max_bytes != 0

    def find(self, key: np.ndarray) -> tuple[Stored | None, int]:
        """Return the stored prefix that shares most with `key`, and how many positions, or (None, 0)."""
        best: _Entry | None = None
        num_shared = MIN_SHARED_TOKENS - 1
        for entry in self._entries:
            shared = shared_length(entry.key, key)
            if shared > num_shared:
                best, num_shared = entry, shared
        if best is None:
            return None, 0
        self._entries.remove(best)
        self._entries.append(best)
        return best.stored, num_shared

    def add(self, key: np.ndarray, stored: Stored) -> None:
        """Take over a stored prefix; those that it contains are dropped, and the oldest beyond the limit."""
        for entry in [entry for entry in self._entries if shared_length(entry.key, key) == len(entry.key)]:
            self._remove(entry)
        self._entries.append(_Entry(key, stored))
        self.num_bytes += stored.num_bytes
        while self._is_full() and self.drop_oldest():
            pass

    def contains(self, key: np.ndarray) -> bool:
        """Whether all of `key` is the beginning of something stored."""
        return any(shared_length(entry.key, key) == len(key) for entry in self._entries)

    def drop_oldest(self) -> bool:
        """Free the prefix unused longest; returns False when there is none."""
        if not self._entries:
            return False
        self._remove(self._entries[0])
        return True

    def clear(self) -> None:
        """Free everything."""
        while self.drop_oldest():
            pass

    def _is_full(self) -> bool:
        too_large = self._max_bytes is not None and self.num_bytes > self._max_bytes
        return too_large or len(self._entries) > MAX_ENTRIES

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self.num_bytes -= entry.stored.num_bytes
        self._drop(entry.stored)
