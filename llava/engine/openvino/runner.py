"""The runner over OpenVINO graphs: one ragged forward pass over the chunks of many rows, without padding.

The decoder's graph is compiled with paged attention. All positions of all chunks are one list; each row's
keys and values lie in blocks named by its table, so rows of any length, prompts in pieces and single tokens
go through the weights together. That is what makes many clients cheap on a CPU, where a decoding step is the
time that reading the weights takes.

T positions of a step, R rows that want logits, N features per picture, C hidden size, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from llava.engine.openvino.blocks import BlockPool, blocks_for
from llava.engine.openvino.conversion import DECODER, EMBEDDINGS, VISION
from llava.engine.openvino.paging import KeyValueCache, OpenVinoOptions, compile_decoder, compile_vision
from llava.engine.openvino.signal_stack import kept_signal_stack
from llava.engine.runner import Chunk, Row, Stored
from llava.errors import EngineError

if TYPE_CHECKING:
    import openvino

    from llava.engine.openvino.support import WeightFormat

_PICTURES_AT_ONCE = 4
"""More gain nothing on a CPU and need more memory."""


class PagedRow:
    """One answer in the making: a block table with room for all its positions."""

    def __init__(self, blocks: list[int], num_tokens: int, max_tokens: int) -> None:
        self.blocks = blocks
        self._num_tokens = num_tokens
        self.max_tokens = max_tokens

    @property
    def num_tokens(self) -> int:
        """Positions that are computed."""
        return self._num_tokens

    def grow(self, count: int) -> None:
        """Count further positions as computed."""
        self._num_tokens += count


class PagedPrefix:
    """The blocks of a finished row."""

    def __init__(self, blocks: list[int], num_tokens: int, pool: BlockPool, block_bytes: int) -> None:
        self.blocks = blocks
        self._num_tokens = num_tokens
        self._pool = pool
        self._block_bytes = block_bytes

    @property
    def num_tokens(self) -> int:
        """Positions that are kept."""
        return self._num_tokens

    @property
    def num_bytes(self) -> int:
        """Bytes of the blocks that nobody else uses."""
        return self._pool.num_sole(self.blocks) * self._block_bytes


class _Graphs:
    """What OpenVINO compiled: held here alone, so that it is freed in `release` and nowhere else."""

    def __init__(self, vision: openvino.CompiledModel, step: openvino.InferRequest) -> None:
        self.vision = vision
        self.step = step

    def release(self) -> None:
        """Free the graphs."""
        with kept_signal_stack():
            del self.vision, self.step


class OpenVinoRunner:
    """A converted model with its keys and values; see `llava.engine.runner.Runner`."""

    def __init__(
        self,
        folder: Path,
        *,
        weight_format: WeightFormat,
        context_length: int,
        options: OpenVinoOptions | None = None,
    ) -> None:
        """`folder`: what `conversion.convert` wrote. context_length: the longest row there can be."""
        options = options or OpenVinoOptions()
        self._name = f"openvino {weight_format if options.precision == 'float32' else options.precision}"
        self._embeddings: npt.NDArray[Any] = np.load(folder / EMBEDDINGS, mmap_mode="r")
        with kept_signal_stack():
            vision = compile_vision(folder / VISION, options)
            decoder = compile_decoder(folder / DECODER, options, weight_format)
            self._graphs = _Graphs(vision, decoder.create_infer_request())
        self._cache = KeyValueCache(decoder, cache_bytes=options.cache_bytes, context_length=context_length)
        self._cache.attach(self._graphs.step)
        weakref.finalize(self, self._graphs.release)
        self._pool = BlockPool(self._cache.num_blocks)
        self._weight_bytes = (folder / DECODER).with_suffix(".bin").stat().st_size

    @property
    def name(self) -> str:
        """What it runs on."""
        return self._name

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one new token of one row reads: decoder and head."""
        return self._weight_bytes

    @property
    def block_size(self) -> int:
        """Positions of a block of keys and values: what a row is rounded up to."""
        return self._cache.block_size

    @property
    def block_bytes(self) -> int:
        """Memory of a block over all layers."""
        return self._cache.block_bytes

    @property
    def num_free_blocks(self) -> int:
        """Blocks that belong to nobody now."""
        return self._pool.num_free

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return features float32[B, N, C] of float32[B, 3, S, S]."""
        batches = pixel_values.float().contiguous().split(_PICTURES_AT_ONCE)
        features = [torch.from_numpy(self._graphs.vision([batch.numpy()])[0].copy()) for batch in batches]
        return torch.cat(features)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return float32[n, C] of int64[n]; negative ids give the row of id 0."""
        rows = self._embeddings[token_ids.clamp(min=0).numpy()]
        return torch.from_numpy(rows.astype(np.float32))

    def can_open(self, max_tokens: int) -> bool:
        """Whether there are free blocks now for a row of `max_tokens` that shares nothing."""
        return self._num_blocks(max_tokens) <= self._pool.num_free

    def open(self, max_tokens: int, *, source: Row | Stored | None = None, num_shared: int = 0) -> PagedRow:
        """Begin a row; full blocks of the shared beginning are used in place, a part of a block is copied.

        Raises EngineError when there are too few free blocks.
        """
        if source is None or num_shared == 0:
            return PagedRow(self._pool.take(self._num_blocks(max_tokens)), 0, max_tokens)
        assert isinstance(source, PagedRow | PagedPrefix), "a row of another runner"
        assert num_shared <= min(source.num_tokens, max_tokens), "more is shared than there is"
        num_full, num_rest = divmod(num_shared, self._cache.block_size)
        own = self._pool.take(self._num_blocks(max_tokens) - num_full)
        shared = source.blocks[:num_full]
        self._pool.share(shared)
        if num_rest:
            self._cache.copy_block(source.blocks[num_full], own[0])
        return PagedRow([*shared, *own], num_shared, max_tokens)

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Append each chunk to its row; returns float32[R, V] of the chunks that want logits, in order.

        Raises EngineError for a row that would outgrow what it was opened for.
        """
        rows = [_paged(chunk) for chunk in chunks]
        lengths = np.array([len(chunk.embeds) for chunk in chunks], dtype=np.int32)
        past = np.array([row.num_tokens for row in rows], dtype=np.int32)
        ends = lengths.cumsum(dtype=np.int32)
        wanted = np.array([end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.wants_logits])
        tables = [
            row.blocks[: self._num_blocks(row.num_tokens + len(chunk.embeds))]
            for row, chunk in zip(rows, chunks, strict=True)
        ]
        positions = [np.arange(begin, begin + n) for begin, n in zip(past, lengths, strict=True)]
        inputs = {
            "inputs_embeds": torch.cat([chunk.embeds for chunk in chunks]).float().numpy(),  # [T, C]
            "position_ids": np.concatenate(positions).astype(np.int64),
            # The graph needs a row to put through the head; without a wish it is the first, and dropped.
            "wanted": wanted.astype(np.int64) if len(wanted) else np.zeros(1, dtype=np.int64),
            "past_lens": past,
            "subsequence_begins": np.concatenate([[0], ends]).astype(np.int32),
            "block_indices": np.concatenate(tables).astype(np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, tables)]).astype(np.int32),
            "max_context_len": np.array((past + lengths).max(), dtype=np.int32),
        }
        logits = self._infer(inputs)
        for row, length in zip(rows, lengths, strict=True):
            row.grow(int(length))
        return torch.from_numpy(logits[: len(wanted)])

    def close(self, row: Row, *, keep: bool) -> PagedPrefix | None:
        """End a row; kept, it holds the blocks of its computed positions and no others."""
        assert isinstance(row, PagedRow), "a row of another runner"
        num_kept = self._num_blocks(row.num_tokens) if keep else 0
        kept, rest = row.blocks[:num_kept], row.blocks[num_kept:]
        self._pool.release(rest)
        row.blocks = []
        if not kept:
            return None
        return PagedPrefix(kept, row.num_tokens, self._pool, self._cache.block_bytes)

    def drop(self, stored: Stored) -> None:
        """Forget a stored prefix; blocks that others share stay theirs."""
        assert isinstance(stored, PagedPrefix), "a prefix of another runner"
        self._pool.release(stored.blocks)
        stored.blocks = []

    def _num_blocks(self, num_tokens: int) -> int:
        return blocks_for(num_tokens, self._cache.block_size)

    def _infer(self, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        try:
            outputs = self._graphs.step.infer(inputs, share_inputs=True, share_outputs=False)
        except (MemoryError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise EngineError(f"OpenVINO could not compute a step: {reason}") from error
        logits: npt.NDArray[np.float32] = outputs["logits"]
        return logits


def _paged(chunk: Chunk) -> PagedRow:
    """Return the chunk's row; raises EngineError when the chunk does not fit into it."""
    row = chunk.row
    assert isinstance(row, PagedRow), "a row of another runner"
    if row.num_tokens + len(chunk.embeds) > row.max_tokens:
        raise EngineError(
            f"a row opened for {row.max_tokens} tokens would have {row.num_tokens + len(chunk.embeds)}"
        )
    return row
