"""Who owns which block: counts, sharing, exhaustion."""

from __future__ import annotations

import pytest

from llava.engine.openvino.blocks import BlockPool, blocks_for
from llava.errors import EngineError


def test_blocks_are_free_again_when_their_last_owner_leaves() -> None:
    pool = BlockPool(4)
    mine = pool.take(3)
    assert len(set(mine)) == 3
    pool.share(mine[:2])
    assert pool.num_sole(mine) == 1
    pool.release(mine)
    assert pool.num_free == 2
    pool.release(mine[:2])
    assert pool.num_free == 4


def test_nothing_is_taken_when_there_is_too_little() -> None:
    pool = BlockPool(2)
    with pytest.raises(EngineError, match="3 blocks of the key-value cache are needed, and 2 are free"):
        pool.take(3)
    assert pool.num_free == 2


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_a_part_of_a_block_is_a_block(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 32) == blocks
