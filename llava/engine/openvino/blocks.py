"""Which blocks of the key-value cache belong to whom: tables, sharing, reference counts. No OpenVINO in here.

A row owns the blocks of all positions that it may ever have from the moment it is opened, so that decoding
never runs out of memory half way. Full blocks of a common beginning are shared and never written again; a
block that is shared in part is copied by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.errors import EngineError


class BlockPool:
    """A fixed number of blocks with reference counts."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        self._counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that belong to nobody."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Return `count` blocks that belong to the caller alone; raises EngineError when there are fewer."""
        if count > len(self._free):
            raise EngineError(
                f"{count} blocks of the key-value cache are needed, and {len(self._free)} are free",
                remedy="Answer fewer requests at once, or give the cache more memory.",
            )
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._counts[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Add one owner to each block."""
        for block in blocks:
            self._counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one owner from each block; what has none left is free."""
        for block in blocks:
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free.append(block)

    def num_sole(self, blocks: Sequence[int]) -> int:
        """Return how many of `blocks` have one owner only."""
        return sum(self._counts[block] == 1 for block in blocks)


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold so many positions."""
    return -(-num_tokens // block_size)
