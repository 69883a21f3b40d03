"""Compiled graphs, and the memory of keys and values that paged attention reads and writes.

What depends on OpenVINO's release is here: the transformation that puts PagedAttention into the decoder, the
properties that choose precision and threads, and the shape in which the CPU wants its cache (blocks of 32
positions in 2026.4, given by the compiled model, never assumed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from llava.engine.openvino.blocks import blocks_for
from llava.engine.openvino.support import why_no_bfloat16
from llava.errors import ConfigError

if TYPE_CHECKING:
    import openvino

    from llava.engine.openvino.support import WeightFormat

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
CachePrecision = Literal["float32", "float16", "uint8", "bfloat16"]
CACHE_PRECISIONS: tuple[CachePrecision, ...] = ("float32", "float16", "uint8")
_NAMES = {"float32": "f32", "float16": "f16", "uint8": "u8", "bfloat16": "bf16"}
"""OpenVINO's names."""
_DEFAULT_ROWS = 8
"""Rows of full length that the default cache has room for."""
_DEFAULT_CACHE_BYTES = 4 << 30
"""The default cache is no larger, unless one row of full length is."""
_ALIGNMENT = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class OpenVinoOptions:
    """How the graphs are run."""

    num_threads: int | None = None
    """None: as many as there are cores."""
    cache_bytes: int | None = None
    """Memory of keys and values; None: eight rows of full length, at most 4 GiB."""
    precision: Precision = "float32"
    """What is computed in. bfloat16 wants a CPU with units for it; weights, keys and values become it too."""
    cache_precision: CachePrecision | None = None
    """Stored keys and values; None: float32 for weights in float32 and float16, else float16."""
    activation_group: int = 128
    """Before weights in 8 or 4 bits, activations are rounded to 8, so many with one scale; 0: none are."""

    def __post_init__(self) -> None:
        for name in ("num_threads", "cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", remedy="Give a whole number above 0.")
        if self.cache_precision not in (None, *CACHE_PRECISIONS):
            raise ConfigError.of_field("cache_precision", self.cache_precision, CACHE_PRECISIONS)
        if self.precision == "bfloat16" and self.cache_precision is not None:
            raise ConfigError(
                f"cache_precision is {self.cache_precision!r} and precision 'bfloat16'",
                remedy="Leave one of them out.",
            )
        if self.activation_group < 0:
            raise ConfigError(f"activation_group is {self.activation_group}", remedy="Give 0 or more.")

    def cache_precision_for(self, weight_format: WeightFormat) -> CachePrecision:
        """Return the precision of keys and values beside weights of a format.

        Rounded to 16 bits they change logits by 1e-3 of their size: a hundred times what exact weights leave,
        a thirtieth of what weights in 8 bits do (docs/cpu.md).
        """
        if self.precision == "bfloat16":
            return "bfloat16"  # paged attention takes no other there
        if self.cache_precision is not None:
            return self.cache_precision
        return "float32" if weight_format in ("float32", "float16") else "float16"


def _core(options: OpenVinoOptions) -> openvino.Core:
    """Return what compiles; raises ConfigError for a precision that this machine has not."""
    import openvino

    if options.precision == "bfloat16" and (reason := why_no_bfloat16(options.num_threads)) is not None:
        raise ConfigError(f"{reason}, and bfloat16 was asked for", remedy="Compute in float32.")
    return openvino.Core()


def compile_vision(path: Path, options: OpenVinoOptions) -> openvino.CompiledModel:
    """Return the compiled graph of tower and projector."""
    core = _core(options)
    graph = core.read_model(path)
    if options.precision == "float32":
        _keep_narrow(graph)
    return core.compile_model(graph, "CPU", _properties(options))


def compile_decoder(
    path: Path, options: OpenVinoOptions, weight_format: WeightFormat
) -> openvino.CompiledModel:
    """Return the compiled decoder with paged attention in place of attention over states."""
    from openvino._offline_transformations import paged_attention_transformation

    core = _core(options)
    graph = core.read_model(path)
    paged_attention_transformation(graph)
    if options.precision == "float32":
        _keep_narrow(graph)
    properties = _properties(options) | {
        "KV_CACHE_PRECISION": _NAMES[options.cache_precision_for(weight_format)]
    }
    return core.compile_model(graph, "CPU", properties)


def _keep_narrow(graph: openvino.Model) -> None:
    """Mark the 16-bit matrices to be widened as they are read, instead of once, to four bytes each."""
    for node in graph.get_ops():
        if node.get_type_name() == "Convert":
            source = node.input(0).get_source_output()
            if (
                source.get_node().get_type_name() == "Constant"
                and source.get_element_type().to_string() == "f16"
            ):
                node.get_rt_info()["decompression_0"] = ""


def _properties(options: OpenVinoOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {
        # Left alone, it is bfloat16 wherever the CPU has units for it, and not exact.
        "INFERENCE_PRECISION_HINT": _NAMES[options.precision],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": options.activation_group,
    }
    if options.num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = options.num_threads
    return properties


class KeyValueCache:
    """Keys and values of all rows, in blocks, as the compiled decoder wants them."""

    def __init__(
        self, decoder: openvino.CompiledModel, *, cache_bytes: int | None, context_length: int
    ) -> None:
        """cache_bytes: memory; None takes the default. context_length: positions of the longest row."""
        ports = {port.any_name: port for port in decoder.inputs if "_cache." in port.any_name}
        shapes = {
            name: [n.get_length() for n in list(port.partial_shape)[1:]] for name, port in ports.items()
        }
        self._types = {name: port.element_type for name, port in ports.items()}
        dtypes = {name: _numpy_dtype(kind) for name, kind in self._types.items()}
        # Values are [blocks, heads, positions, width] in every precision; keys may be laid out otherwise.
        self.block_size = next(shape[1] for name, shape in shapes.items() if name.startswith("value"))
        """Positions of a block."""
        self.block_bytes = sum(math.prod(shapes[name]) * dtypes[name].itemsize for name in ports)
        """Memory of one block over all layers."""
        self.num_blocks = self._count(cache_bytes, blocks_for(context_length, self.block_size))
        self._arrays = {name: _zeros((self.num_blocks, *shapes[name]), dtypes[name]) for name in ports}

    def attach(self, request: openvino.InferRequest) -> None:
        """Let a request read and write this memory."""
        import openvino

        for name, array in self._arrays.items():
            shape = openvino.Shape(list(array.shape))
            request.set_tensor(name, openvino.Tensor(array, shape, self._types[name]))

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in every layer."""
        for array in self._arrays.values():
            array[target] = array[source]

    def _count(self, cache_bytes: int | None, blocks_per_row: int) -> int:
        if cache_bytes is None:
            most = max(blocks_per_row, _DEFAULT_CACHE_BYTES // self.block_bytes)
            return min(most, _DEFAULT_ROWS * blocks_per_row)
        if cache_bytes < self.block_bytes:
            raise ConfigError(
                f"cache_bytes is {cache_bytes}; {self.block_size} positions take {self.block_bytes} bytes",
                remedy=f"Give at least {blocks_per_row * self.block_bytes}, one row of full length.",
            )
        return cache_bytes // self.block_bytes


def _numpy_dtype(kind: openvino.Type) -> np.dtype[Any]:
    """Return the dtype that holds a type of OpenVINO's; numpy has no bfloat16, which is only copied."""
    if kind.get_type_name() == "bf16":
        return np.dtype(np.uint16)
    dtype: np.dtype[Any] = kind.to_dtype()
    return dtype


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return zeros that begin at a cache line; pages that were never written take no memory."""
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + num_bytes].view(dtype).reshape(shape)
