"""Hours of a run: floating point operations over what the machine is assumed to reach.

useful FLOPs    `flops.step_flops` of the model itself x samples x epochs
computed FLOPs  the same and what is computed in vain: activations again, padding
hours           computed FLOPs / (devices x peak x SHARE), and the optimizer's update on a CPU
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.train.config import TrainConfig
from llava.train.flops import StepFlops
from llava.train.planning.lengths import Lengths
from llava.train.planning.machines import Machine
from llava.train.planning.shapes import Counts, Shapes

PEAK_SHARE = 0.33
"""Share of the peak that computed FLOPs reach on GPUs, an assumption: the mean of the three published times
of 8B runs on eight A100s or A800s, by this module's own count (0.18, 0.34, 0.48; docs/plan.md). Models of 1
to 3 billion parameters reached 0.20 to 0.32. --mfu states another."""
_UPDATE_BYTES = 28
"""Read and written per trained weight by AdamW in float32: weight, gradient, two moments."""
_RECOMPUTED = 1.0
"""Forward passes that gradient checkpointing adds."""


@dataclass(frozen=True)
class Hours:
    """How long a run takes."""

    useful_flops: float
    """Of the whole run."""
    computed_flops: float
    """With activations computed twice and padding."""
    num_steps: int
    step_s: float | None
    """Seconds of a step; None: the machine's peak is not known."""
    peak_share: float
    """Assumed."""

    @property
    def hours(self) -> float | None:
        """Of the whole run."""
        return None if self.step_s is None else self.step_s * self.num_steps / 3600

    @property
    def mfu(self) -> float:
        """Useful share of the peak that this comes to."""
        return self.peak_share * self.useful_flops / self.computed_flops


def predict_hours(
    config: TrainConfig,
    machine: Machine,
    flops: StepFlops,
    forward: StepFlops,
    lengths: Lengths,
    shapes: Shapes,
    counts: Counts,
    *,
    global_batch: int,
    peak_share: float | None = None,
    padding: float = 0.0,
) -> Hours:
    """Return the time of a run.

    flops: of training; forward: of the language model's forward pass alone. padding: share of computed
    positions that is padding. peak_share: over the assumption.
    """
    run = config.run
    samples = lengths.num_samples * run.epochs
    num_steps = max(1, -(-int(samples) // global_batch))
    if run.max_steps > 0:
        num_steps, samples = run.max_steps, float(run.max_steps * global_batch)
    total = lengths.total(shapes.num_image_tokens, config.data.max_length)
    pairs = total**2 * (1 + lengths.spread**2) / 2
    useful = samples * _of_sample(flops, lengths, total, pairs)
    computed = useful
    if run.gradient_checkpointing:
        again = forward.per_token * total + forward.per_pair * pairs
        computed += samples * again * _RECOMPUTED
    computed += samples * flops.per_token * total * padding / (1 - padding)
    share = PEAK_SHARE if peak_share is None else peak_share
    step_s = None
    if machine.peak_flops is not None:
        step_s = computed / num_steps / (machine.peak_flops * machine.num_devices * share)
        if machine.update_bytes_per_s is not None:
            step_s += _UPDATE_BYTES * counts.trained / machine.update_bytes_per_s
    return Hours(useful, computed, num_steps, step_s, share)


def _of_sample(flops: StepFlops, lengths: Lengths, total: float, pairs: float) -> float:
    return (
        flops.per_token * total
        + flops.per_pair * pairs
        + flops.per_target * lengths.targets
        + flops.per_picture * lengths.pictures
    )
