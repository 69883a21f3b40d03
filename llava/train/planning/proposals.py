"""What to change when a run does not fit, the least harmful first, each with its own prediction.

    smaller passes -> gradient checkpointing -> weights spread over devices -> offload -> LoRA -> QLoRA

The first three give the same weights. Each step keeps those before it, until the run fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llava.errors import ConfigError
from llava.train.config import TrainConfig
from llava.train.planning.machines import Machine
from llava.train.planning.prediction import Prediction, changed, is_deepspeed

ZERO_3 = "scripts/zero3.json"
ZERO_3_OFFLOAD = "scripts/zero3_offload.json"
_SMALLEST_PASS = 1
Predict = Callable[[TrainConfig], Prediction]


@dataclass(frozen=True)
class Proposal:
    """A change of the recipe, and what it leads to."""

    flags: str
    """As they are written after `llava train RECIPE`."""
    reason: str
    prediction: Prediction

    @property
    def fits(self) -> bool:
        """Whether the run fits so."""
        return not self.prediction.shortage


def propose(config: TrainConfig, machine: Machine, predict: Predict) -> list[Proposal]:
    """Return proposals in order, those that do not fit yet left out; empty when nothing helps."""
    found: list[Proposal] = []
    for flags, reason, changed_config in _steps(config, machine):
        if any(flags.startswith(f"{earlier.flags} ") for earlier in found):
            continue  # more of what is enough
        try:
            prediction = predict(changed_config)
        except ConfigError:
            continue  # two options that do not go together: the next one may
        if not prediction.shortage:
            found.append(Proposal(flags, reason, prediction))
    return found


def _steps(config: TrainConfig, machine: Machine) -> Iterator[tuple[str, str, TrainConfig]]:
    """Yield (flags, reason, run): what leaves the result as it is first."""
    flags: list[str] = []
    smaller, smaller_flags = _smaller(config, machine)
    if smaller_flags:
        yield smaller_flags, "smaller passes, the same weights", smaller
    kept = config
    if not config.run.gradient_checkpointing:
        kept = changed(kept, run={"gradient_checkpointing": True})
        flags.append("--run.gradient_checkpointing true")
        yield " ".join(flags), "activations computed twice, the same weights", kept
        if smaller_flags:
            both = _smaller(kept, machine)[0]
            yield f"{flags[0]} {smaller_flags}", "both", both
    if machine.num_devices > 1 and config.stage.name != "qlora":
        for engine_flags, reason, fields in _engines(config, machine):
            spread = changed(kept, run=fields)
            yield " ".join([*flags, engine_flags]), reason, spread
            if smaller_flags:
                run = _smaller(spread, machine)[0]
                yield " ".join([*flags, engine_flags, smaller_flags]), f"{reason}; smaller passes", run
    for name, reason in (("lora", "adapters alone learn"), ("qlora", "adapters over 4-bit weights")):
        if config.stage.name in ("finetune", "lora") and config.stage.name != name:
            fields = {"engine": "auto", "deepspeed": None} if name == "qlora" else {}
            stage = changed(_smaller(kept, machine)[0], stage={"name": name}, run=fields)
            dropped = "--run.deepspeed none" if fields and is_deepspeed(config) else ""
            parts = [*flags, smaller_flags, f"--stage.name {name}", dropped]
            yield " ".join(part for part in parts if part), f"{reason}: another result", stage


def _smaller(config: TrainConfig, machine: Machine) -> tuple[TrainConfig, str]:
    """Return the run with the shortest passes that a sample of full length allows, and its flags."""
    share = (config.run.global_batch or 0) // machine.num_devices
    limit = config.data.max_length
    if config.data.packing:
        if (config.run.micro_tokens or limit * (config.run.micro_batch or 8)) <= limit:
            return config, ""
        return changed(config, run={"micro_tokens": limit}), f"--run.micro_tokens {limit}"
    if config.run.micro_batch == _SMALLEST_PASS or not share:
        return config, ""
    run = {"micro_batch": _SMALLEST_PASS, "accumulation": None}
    return changed(config, run=run), f"--run.micro_batch {_SMALLEST_PASS}"


def _engines(config: TrainConfig, machine: Machine) -> Iterator[tuple[str, str, dict[str, object]]]:
    if config.run.engine != "fsdp":
        gone = " --run.deepspeed none" if config.run.deepspeed else ""
        yield (
            f"--run.engine fsdp{gone}",
            "weights, gradients and optimizer state spread, the same weights",
            {"engine": "fsdp", "deepspeed": None},
        )
    if config.run.deepspeed != ZERO_3:
        yield (
            f"--run.deepspeed {ZERO_3}",
            "the same with DeepSpeed",
            {"engine": "auto", "deepspeed": ZERO_3},
        )
    if not machine.is_cpu and config.run.deepspeed != ZERO_3_OFFLOAD:
        yield (
            f"--run.deepspeed {ZERO_3_OFFLOAD}",
            "optimizer state and weights on the host, slower",
            {"engine": "auto", "deepspeed": ZERO_3_OFFLOAD},
        )
