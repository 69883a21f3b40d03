"""The precision a run asks for, on the device it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from llava.train.config import TrainConfig


def settle_precision(config: TrainConfig, on_notice: Callable[[str], None]) -> TrainConfig:
    """Return the run with a precision that its device computes in; `on_notice` is told of a change.

    The recipes' bfloat16 is a GPU's: a CPU without bfloat16 units takes many times as long, and float16 needs
    a GPU. Raises UsageError for a device that is not there.
    """
    from llava.model.device import resolve_device, resolve_dtype

    asked = config.run.precision
    if asked is None or asked == "float32" or resolve_device(config.run.device).type != "cpu":
        return config
    own = resolve_dtype(None, resolve_device("cpu"), num_parameters=2**40)
    best: Literal["float32", "bfloat16"] = "bfloat16" if str(own) == "torch.bfloat16" else "float32"
    if asked == best:
        return config
    reason = "trains in no float16" if asked == "float16" else "has no bfloat16 units"
    on_notice(f"warning: this CPU {reason}; {best} is used")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, precision=best))
