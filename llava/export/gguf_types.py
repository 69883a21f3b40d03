"""Number formats of GGUF tensors: which one a tensor gets, and its bytes.

F16, F32 and Q8_0 come from the `gguf` package. The k-quants are computed by llama.cpp itself: xllamacpp
carries its quantiser (`ggml_quantize_chunk`) as an exported symbol. Which tensor gets more bits in Q4_K_M and
Q5_K_M, and what a row that is no multiple of a block becomes, are llama.cpp's rules (src/llama-quant.cpp).
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    import torch

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17}
"""Types of a whole file, with llama.cpp's number of each."""
_BASE_TYPES = {"F32": "F32", "F16": "F16", "Q8_0": "Q8_0", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is no multiple of 256."""
_BLOCKS = {
    # type: (values in a block, bytes of a block)
    "F32": (1, 4),
    "F16": (1, 2),
    "Q8_0": (32, 34),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
_OF_GGUF = ("Q8_0", "Q5_0", "Q5_1")
_LAYER = re.compile(r"blk\.(\d+)\.")


def check_type(file_type: str) -> None:
    """Raise ConfigError for an unknown type, DependencyError for one whose quantiser is not installed."""
    if file_type not in FILE_TYPES:
        raise ConfigError.of_field("type", file_type, FILE_TYPES)
    if file_type.endswith("_K_M"):
        _quantiser()


def tensor_type(
    name: str, shape: tuple[int, ...], file_type: str, *, num_layers: int, is_tied: bool
) -> tuple[str, bool]:
    """Return a text model tensor's type in a file of `file_type`, and whether its shape made it another.

    name: its GGUF name. is_tied: the token embedding is the head too, and gets the head's type.
    """
    if len(shape) < 2:
        return "F32", False
    wanted = _BASE_TYPES[file_type]
    is_head = name == "output.weight" or (is_tied and name == "token_embd.weight")
    if wanted in ("Q4_K", "Q5_K"):
        if is_head:
            wanted = "Q8_0" if shape[-1] % 256 else "Q6_K"
        elif name.endswith(("attn_v.weight", "ffn_down.weight")):
            layer = _LAYER.match(name)
            if layer is not None and _has_more_bits(int(layer[1]), num_layers):
                wanted = "Q6_K"
    for candidate in (wanted, _FALLBACKS.get(wanted, wanted)):
        if shape[-1] % _BLOCKS[candidate][0] == 0:
            return candidate, candidate != wanted
    return "F16", True


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """Whether a layer is among the half in which values and down-projections keep 6 bits."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def num_bytes(shape: tuple[int, ...], tensor_type: str) -> int:
    """Return the size of a tensor's data."""
    values, size = _BLOCKS[tensor_type]
    return prod(shape) // values * size


def encode(tensor: torch.Tensor, tensor_type: str) -> np.ndarray[Any, Any]:
    """Return the data of a float32 tensor in a type."""
    values = np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
    if tensor_type == "F32":
        return values
    if tensor_type == "F16":
        return values.astype(np.float16)
    if tensor_type in _OF_GGUF:
        import gguf

        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor_type])
    return _quantise(values, tensor_type)


def _quantise(values: np.ndarray[Any, Any], tensor_type: str) -> np.ndarray[Any, Any]:
    """Let llama.cpp quantise `values`, its rows shared out among as many threads as torch uses."""
    import gguf
    import torch

    quantise, type_id = _quantiser(), int(gguf.GGMLQuantizationType[tensor_type])
    num_rows, width = prod(values.shape[:-1]), values.shape[-1]
    encoded = np.empty(num_bytes(values.shape, tensor_type), dtype=np.uint8)
    source = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    target = encoded.ctypes.data_as(ctypes.c_void_p)
    num_threads = min(num_rows, torch.get_num_threads())
    cuts = [num_rows * index // num_threads for index in range(num_threads + 1)]

    def part(first: int, end: int) -> int:
        return quantise(type_id, source, target, first * width, end - first, width, None)

    with ThreadPoolExecutor(num_threads) as pool:
        written = sum(pool.map(part, cuts[:-1], cuts[1:]))
    assert written == encoded.nbytes, "llama.cpp wrote another number of bytes than the type has"
    return encoded


@functools.cache
def _quantiser() -> Callable[..., int]:
    """Return llama.cpp's `ggml_quantize_chunk` from xllamacpp's library."""
    try:
        import xllamacpp
    except ImportError as error:
        raise DependencyError.of_extra("xllamacpp", "cpu", "quantising to Q4_K_M and Q5_K_M") from error
    try:
        function = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    except (AttributeError, OSError) as error:
        raise DependencyError(
            "this build of xllamacpp does not give access to llama.cpp's quantiser",
            remedy="Use F16 or Q8_0, or quantise the F16 file with llama.cpp's own llama-quantize.",
        ) from error
    function.restype = ctypes.c_size_t
    function.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_float),
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    return function
