"""The statistics of an engine whose answers are made by several threads."""

from __future__ import annotations

import threading
from dataclasses import replace

from llava.engine.protocol import Statistics


class Counter:
    """Holds a Statistics and changes it safely."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Statistics()

    def add(self, **amounts: int) -> None:
        """Add to the fields named; amounts may be negative."""
        with self._lock:
            changed = {name: getattr(self._now, name) + amount for name, amount in amounts.items()}
            self._now = replace(self._now, **changed)

    @property
    def now(self) -> Statistics:
        """What was counted so far."""
        with self._lock:
            return self._now
