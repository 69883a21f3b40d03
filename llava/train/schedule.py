"""Learning rates over a run, as transformers' schedulers of the same names give them.

The rate of a step is the one used IN it, counted from 0: with warm-up, the first step runs at rate 0, as
in the original (`fixtures/training` of the specification).
"""

from __future__ import annotations

import math

from llava.train.config import OptimizerOptions


def num_warmup_steps(options: OptimizerOptions, num_steps: int) -> int:
    """Return the steps of warm-up: those stated, else the stated share of all, rounded up."""
    return options.warmup_steps or math.ceil(num_steps * options.warmup_ratio)


def lr_share(options: OptimizerOptions, step: int, num_steps: int) -> float:
    """Return the share of the peak learning rate that step `step` (from 0) of `num_steps` uses."""
    if options.schedule == "constant":
        return 1.0
    warmup = num_warmup_steps(options, num_steps)
    if step < warmup:
        return step / max(1, warmup)
    if options.schedule == "constant_with_warmup":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    if options.schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
