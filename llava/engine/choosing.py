"""`engine="auto"`: the fastest engine on this machine that answers as exactly as was asked.

What was asked decides what is exact enough:

| asked | on a CPU without a GPU beside it | why |
|---|---|---|
| nothing, weights stored in 16 bits | openvino, float16 | weights stay as they are stored, sums are float32 |
| the same, a large model, a CPU with AMX | openvino, bfloat16 | its own dtype there, as on a GPU |
| nothing, weights stored in 32 bits | torch | fewer bits would round them |
| 8 or 4 bits | openvino, int8 or int4 | the rounding was asked for |
| float32, bfloat16 (a CPU with units for it) | as if not asked, in that dtype | |
| float16, attention or a device map | torch | only there it has a meaning |
| nothing, below SMALL_MODEL parameters | torch | nothing to gain, and no conversion to wait for |

bfloat16 does not fit into float16 and counts as 32 bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from llava.engine.openvino.paging import PRECISIONS, Precision
from llava.engine.openvino.support import (
    WeightFormat,
    check_supported,
    require_openvino,
    why_no_bfloat16,
)
from llava.errors import CheckpointError, DependencyError
from llava.model import device
from llava.model.assembling import assemble
from llava.model.builder import LoadOptions
from llava.model.checkpoint import recognise
from llava.model.describing import count_parameters, stored_dtypes
from llava.model.device import cpu_has_tiles, dtype_name, resolve_device

SMALL_MODEL = 50_000_000
"""Parameters of a language model below which Python's own time is most of a step."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it was taken."""

    engine: Literal["torch", "openvino"]
    reason: str
    precision: Precision = "float32"
    """What openvino computes in."""
    is_notable: bool = False
    """Whether a person should hear of it: another engine than ever, or a slower one than there could be."""


def choose(path: str | os.PathLike[str], options: LoadOptions) -> Choice:
    """Return the engine for a checkpoint; raises CheckpointError and ConfigError as loading would."""
    place = resolve_device(options.device)
    if place.type != "cpu":
        return Choice("torch", f"torch, on {place}")
    dtype = dtype_name(options.dtype)
    asked = {
        f"dtype {dtype}": dtype is not None and (dtype not in PRECISIONS or options.bits is not None),
        "device_map": options.device_map is not None,
        "attn_implementation": options.attn_implementation is not None,
    }
    if named := [name for name, is_asked in asked.items() if is_asked]:
        return Choice("torch", f"torch, which alone knows {', '.join(named)}")
    parts = assemble(recognise(path), base=options.base, image_size=options.image_size)
    num_parameters = count_parameters(parts)["language_model"]
    if options.bits is None and num_parameters < SMALL_MODEL:
        return Choice("torch", "torch: the model is small")
    dtypes = stored_dtypes(parts.source)
    if options.bits is None and dtypes != ["float16"]:
        return Choice(
            "torch", f"torch: the weights are {' and '.join(dtypes)}, and fewer bits would round them"
        )
    try:
        require_openvino(nncf=options.bits is not None)
        check_supported(parts.config())
    except (CheckpointError, DependencyError) as error:
        return Choice("torch", f"torch, not the faster openvino: {error}", is_notable=True)
    is_large = dtype is None and options.bits is None and num_parameters > device.SMALL_MODEL
    if dtype == "bfloat16" or (is_large and cpu_has_tiles()):
        if (why_not := why_no_bfloat16()) is None:
            reason = "openvino in bfloat16, the fastest on this CPU"
            return Choice("openvino", reason, "bfloat16", is_notable=True)
        if dtype == "bfloat16":
            return Choice("torch", f"torch: {why_not}", is_notable=True)
    reason = f"openvino with {format_of_bits(options.bits)} weights, the fastest on this CPU"
    return Choice("openvino", reason, is_notable=True)


def format_of_bits(bits: Literal[4, 8] | None) -> WeightFormat:
    """Return how OpenVINO holds weights of so many bits; None keeps what is stored in 16."""
    return "float16" if bits is None else "int8" if bits == 8 else "int4"
