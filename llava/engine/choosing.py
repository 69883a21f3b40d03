"""`engine="auto"`: the fastest engine on this machine that answers as exactly as was asked.

What was asked decides what is exact enough:

| asked | on a CPU without a GPU beside it | why |
|---|---|---|
| nothing, weights stored in 16 bits | openvino, float16 | weights stay as they are stored, sums are float32 |
| nothing, weights stored in 32 bits | torch | fewer bits would round them |
| 8 or 4 bits | openvino, int8 or int4 | the rounding was asked for |
| a dtype, attention or device map | torch | only there it has a meaning |
| nothing, below SMALL_MODEL parameters | torch | nothing to gain, and no conversion to wait for |

bfloat16 does not fit into float16 and counts as 32 bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from llava.engine.openvino.support import WeightFormat, check_supported, require_openvino
from llava.errors import CheckpointError, DependencyError
from llava.model.assembling import assemble
from llava.model.builder import LoadOptions
from llava.model.checkpoint import recognise
from llava.model.describing import count_parameters, stored_dtypes
from llava.model.device import resolve_device

SMALL_MODEL = 50_000_000
"""Parameters of a language model below which Python's own time is most of a step."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it was taken."""

    engine: Literal["torch", "openvino"]
    reason: str
    is_notable: bool = False
    """Whether a person should hear of it: another engine than ever, or a slower one than there could be."""


def choose(path: str | os.PathLike[str], options: LoadOptions) -> Choice:
    """Return the engine for a checkpoint; raises CheckpointError and ConfigError as loading would."""
    device = resolve_device(options.device)
    if device.type != "cpu":
        return Choice("torch", f"torch, on {device}")
    asked = {
        "dtype": options.dtype,
        "device_map": options.device_map,
        "attn_implementation": options.attn_implementation,
    }
    if named := [name for name, value in asked.items() if value is not None]:
        return Choice("torch", f"torch, which alone knows {', '.join(named)}")
    parts = assemble(recognise(path), base=options.base, image_size=options.image_size)
    if options.bits is None and count_parameters(parts)["language_model"] < SMALL_MODEL:
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
    reason = f"openvino with {format_of_bits(options.bits)} weights, the fastest on this CPU"
    return Choice("openvino", reason, is_notable=True)


def format_of_bits(bits: Literal[4, 8] | None) -> WeightFormat:
    """Return how OpenVINO holds weights of so many bits; None keeps what is stored in 16."""
    return "float16" if bits is None else "int8" if bits == 8 else "int4"
