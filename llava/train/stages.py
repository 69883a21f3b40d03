"""What learns: one named stage, turned into `requires_grad` flags in one place.

    stage -> `rules_of` (part -> what of it) -> `learning_names` (parameter names) -> `apply_stage` (flags)

Parts are "vision" (the tower), "projector" and "language_model" (with its head); of a language model alone,
all is "language_model". Everything that no rule names is frozen. Names are those of the model; a wrapper
around it (`TrainingModel`, an engine's own) may put something in front of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from llava.errors import ConfigError
from llava.log import get_logger
from llava.model.saving import is_adapter, plain_name
from llava.train.config import OptimizerOptions, StageOptions

if TYPE_CHECKING:
    from llava.train.trainee import Trainee

logger = get_logger(__name__)

Part = Literal["vision", "projector", "language_model"]
PARTS: tuple[Part, ...] = ("vision", "projector", "language_model")
_ALLOWED = {
    "vision": ("none", "all", "last:N", "positions", "lora"),
    "projector": ("none", "all"),
    "language_model": ("none", "all", "last:N", "lora"),
}
_TITLES = {"vision": "vision tower", "projector": "projector", "language_model": "language model"}
_LAST = re.compile(r"last:([1-9]\d*)")
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks|h)\.(\d+)\.")
_POSITIONS = re.compile(r"embeddings\.(position_embeddings|position_embedding\.weight)$")
_UNUSED = "vision_tower.post_layernorm."
"""CLIP's LayerNorm over its pooled output, which the features do not pass through: it gets no gradient."""
_EMBEDDING = re.compile(r"\.(embed_tokens|wte|embed_in)\.weight$")


@dataclass(frozen=True)
class Rules:
    """What learns of each part, checked."""

    vision: str = "none"
    projector: str = "none"
    language_model: str = "none"
    positions: bool = False
    """The tower's position table too."""
    embeddings: bool = False
    """The token embedding too: <im_start> and <im_end> are new, and the language model is frozen."""
    lora_bias: str = "none"

    def of(self, part: Part) -> str:
        """Return what learns of a part."""
        return {"vision": self.vision, "projector": self.projector, "language_model": self.language_model}[
            part
        ]

    @property
    def lora_parts(self) -> tuple[Part, ...]:
        """The parts that get adapters."""
        return tuple(part for part in PARTS if self.of(part) == "lora")


@dataclass(frozen=True)
class PartRow:
    """One row of the table of trainable parameters."""

    part: str
    """Title of the part, with " (LoRA)" for adapters."""
    tensors: int
    parameters: int
    """Of these tensors: what learns."""
    total: int
    """Parameters of the part, its adapters aside."""


def bits_of(stage: StageOptions) -> Literal[4, 8, 16]:
    """Return in how many bits the base is held: `bits`, and 4 for the stage "qlora" without a number."""
    return 4 if stage.name == "qlora" and stage.bits == 16 else stage.bits


def rules_of(stage: StageOptions, *, has_pictures: bool, im_start_end: bool = False) -> Rules:
    """Return what learns of each part; raises ConfigError for options that contradict each other.

    has_pictures: whether there are a tower and a projector. Options without effect are logged.
    """
    named = {
        "align": {"projector": "all"},
        "finetune": {"projector": "all", "language_model": "all"},
        "lora": {"projector": "all", "language_model": "lora"},
        "qlora": {"projector": "all", "language_model": "lora"},
    }
    if stage.name == "custom":
        learns = _custom(stage)
    else:
        if stage.learns:
            raise ConfigError(
                f"stage.learns is given, and the stage is {stage.name!r}", remedy="Use stage.name: custom."
            )
        if stage.name not in named:
            raise ConfigError.of_field("stage.name", stage.name, (*named, "custom"))
        learns = dict(named[stage.name])
        _freeze(stage, learns)
    if not has_pictures:
        _without_pictures(stage, learns)
    rules = Rules(
        vision=learns.get("vision", "none"),
        projector=learns.get("projector", "none"),
        language_model=learns.get("language_model", "none"),
        positions=stage.positions,
        embeddings=stage.name == "align" and im_start_end,
        lora_bias=stage.lora_bias,
    )
    _check(stage, rules)
    return rules


def learning_names(names: Sequence[str], rules: Rules, *, linear: Sequence[str] = ()) -> set[str]:
    """Return which of the model's parameter `names` learn, adapters aside.

    linear: names of the modules that get adapters (for lora_bias "lora_only"). Raises ConfigError when a part
    has fewer layers than the rule says.
    """
    found: set[str] = set()
    for part in PARTS:
        own = [name for name in names if part_of(name) == part and _UNUSED not in name]
        rule = rules.of(part)
        last = _LAST.fullmatch(rule)
        if rule == "all":
            found.update(own)
        elif last is not None:
            found.update(_last_layers(own, int(last[1]), part))
        if part == "vision" and (rule == "positions" or rules.positions):
            found.update(name for name in own if _POSITIONS.search(name))
        if part == "language_model" and rules.embeddings:
            found.update(name for name in own if _EMBEDDING.search(name))
        if part == "language_model" and rule == "lora" and rules.lora_bias != "none":
            adapted = {f"{module}.bias" for module in linear}
            found.update(
                name
                for name in own
                if name.endswith(".bias") and (rules.lora_bias == "all" or name in adapted)
            )
    return found


def part_of(name: str) -> Part:
    """Return the part that a parameter belongs to, whatever wrappers put before its name."""
    if "vision_tower." in name:
        return "vision"
    return "projector" if "multi_modal_projector." in name else "language_model"


def apply_stage(trainee: Trainee, stage: StageOptions) -> list[PartRow]:
    """Add adapters, set every `requires_grad` and the modules' modes; returns the table's rows.

    The only place that decides what learns. What learns is float32 afterwards. Raises ConfigError.
    """
    from llava.train import lora

    model = trainee.model
    rules = rules_of(stage, has_pictures=trainee.has_pictures, im_start_end=trainee.im_start_end)
    linear = lora.linear_names(model, rules.lora_parts)
    learning = learning_names([name for name, _ in model.named_parameters()], rules, linear=linear)
    if rules.lora_parts:
        lora.add_adapters(model, linear, stage, seed=trainee.seed)
        lora.fill_adapters(model, trainee.lora_weights)
    for name, parameter in model.named_parameters():
        learns = is_adapter(name) or plain_name(name) in learning
        if learns and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(learns)
    train_mode(model)
    rows = part_rows(model)
    if not any(row.parameters for row in rows):
        raise ConfigError("Nothing learns in this stage", remedy="Let a part with weights learn.")
    trainee.rules_of_stage = rules
    return rows


def train_mode(model: nn.Module) -> None:
    """Put the model in training mode, and a tower that does not learn in evaluation mode (no dropout)."""
    model.train()
    for name, module in model.named_modules():
        is_tower = name.rpartition(".")[2] == "vision_tower"
        if is_tower and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; works with frozen embeddings under LoRA too."""
    # The reentrant kind loses the gradient where a block's input needs none.
    kind = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        # The name since transformers 5.23, which warns of the other.
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kind)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)


def part_rows(model: nn.Module) -> list[PartRow]:
    """Return a row for each part, and one for its adapters where there are some."""
    rows = []
    for part in PARTS:
        own = [(name, value) for name, value in model.named_parameters() if part_of(name) == part]
        if not own:
            continue
        base = [value for name, value in own if not is_adapter(name)]
        adapters = [value for name, value in own if is_adapter(name)]
        total = sum(map(num_values, base))
        for title, values in ((_TITLES[part], base), (f"{_TITLES[part]} (LoRA)", adapters)):
            learned = [value for value in values if value.requires_grad]
            if values is base or adapters:
                rows.append(PartRow(title, len(learned), sum(map(num_values, learned)), total))
    return rows


def num_values(parameter: torch.Tensor) -> int:
    """Return how many weights a parameter stands for; 4-bit ones are packed two to a byte."""
    state = vars(parameter).get("quant_state") if hasattr(parameter, "__dict__") else None
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def trainable_table(model: nn.Module, groups: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the table of what learns as text; with the optimizer's groups also at which rates."""
    rates: dict[str, str] = {}
    for group in groups:
        rates.setdefault(_TITLES[str(group["name"]).partition("/")[0]], f"{group['lr']:.3g}")
    rows = part_rows(model)
    lines = [("part", "tensors", "parameters", "of the part", "rate")]
    for row in rows:
        share = f"{row.parameters / row.total:.2%}" if row.total else "-"
        rate = rates.get(row.part.removesuffix(" (LoRA)"), "-") if row.parameters else "-"
        lines.append((row.part, str(row.tensors), f"{row.parameters:,}", share, rate))
    learned = sum(row.parameters for row in rows)
    total = sum(row.total for row in rows if not row.part.endswith("(LoRA)"))
    tensors = sum(row.tensors for row in rows)
    lines.append(("total", str(tensors), f"{learned:,}", f"{learned / total:.2%} of {total:,}", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 5))]).rstrip()
        for line in lines
    )


def parameter_groups(
    model: nn.Module, optimizer: OptimizerOptions, stage: StageOptions
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: parts x {with, without weight decay}, empty ones left out.

    Each is {"params", "names", "lr", "weight_decay", "name": "PART/decay" or "PART/no_decay"}. Biases and the
    weights of norms do not decay, as in transformers' Trainer.
    """
    rates = {
        "vision": stage.vision_lr,
        "projector": stage.projector_lr,
        "language_model": None,
    }
    without_decay = set(_without_decay(model))
    groups: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        rate = rates[part]
        for suffix in ("decay", "no_decay"):
            groups[f"{part}/{suffix}"] = {
                "params": [],
                "names": [],
                "lr": optimizer.lr if rate is None else rate,
                "weight_decay": optimizer.weight_decay if suffix == "decay" else 0.0,
                "name": f"{part}/{suffix}",
            }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[f"{part_of(name)}/{'no_decay' if name in without_decay else 'decay'}"]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def _without_decay(model: nn.Module) -> Iterator[str]:
    for module_name, module in model.named_modules():
        # Sharding engines put a class of their own before the module's.
        kinds = (base.__name__ for base in type(module).__mro__)
        is_norm = any(kind.endswith(("LayerNorm", "RMSNorm")) for kind in kinds)
        for name, _ in module.named_parameters(recurse=False):
            if is_norm or "bias" in name:
                yield f"{module_name}.{name}" if module_name else name


def _custom(stage: StageOptions) -> dict[str, str]:
    if not stage.learns:
        raise ConfigError(
            "The stage is 'custom', and stage.learns says nothing", remedy="Example: {projector: all}."
        )
    for part, rule in stage.learns.items():
        if part not in _ALLOWED:
            raise ConfigError.of_field("part in stage.learns", part, PARTS)
        is_last = _LAST.fullmatch(str(rule)) is not None and "last:N" in _ALLOWED[part]
        if rule not in _ALLOWED[part] and not is_last:
            raise ConfigError.of_field(f"stage.learns.{part}", rule, _ALLOWED[part])
    for name in ("freeze_projector", "freeze_language_model"):
        if getattr(stage, name):
            raise ConfigError(
                f"stage.{name} is set beside stage.learns", remedy="Say it in stage.learns: PART: none."
            )
    return {str(part): str(rule) for part, rule in stage.learns.items()}


def _freeze(stage: StageOptions, learns: dict[str, str]) -> None:
    if stage.freeze_projector:
        if stage.name == "align":
            raise ConfigError(
                "The stage 'align' trains the projector, and freeze_projector freezes it",
                remedy="Leave one of the two out.",
            )
        learns["projector"] = "none"
    if stage.freeze_language_model:
        if learns.get("language_model") == "lora":
            raise ConfigError(
                f"The stage {stage.name!r} adds adapters to the language model, and freeze_language_model "
                "freezes it",
                remedy="Use the stage align to train the projector alone.",
            )
        if stage.name == "align":
            logger.info("freeze_language_model has no effect: the stage align freezes it anyway")
        learns["language_model"] = "none"


def _without_pictures(stage: StageOptions, learns: dict[str, str]) -> None:
    """Drop what a named stage says of the projector; raise for what was asked of it."""
    if stage.name == "align" or any(learns.get(part, "none") != "none" for part in PARTS[:2] if stage.learns):
        raise ConfigError(
            "The stage trains a tower or projector, and the model is a language model alone",
            remedy="Give model.vision_tower.",
        )
    if stage.positions:
        raise ConfigError(
            "stage.positions is set, and the model is a language model alone",
            remedy="Give model.vision_tower.",
        )
    learns.pop("projector", None)


def _check(stage: StageOptions, rules: Rules) -> None:
    learns_at_all = any(rules.of(part) != "none" for part in PARTS) or rules.positions
    if not learns_at_all:
        raise ConfigError("Nothing learns in this stage", remedy="Leave out one of the freeze options.")
    if stage.name == "qlora" and "language_model" not in rules.lora_parts:
        raise ConfigError("The stage 'qlora' without adapters", remedy="Use another stage.")
    if bits_of(stage) != 16 and rules.language_model not in ("none", "lora"):
        raise ConfigError(
            f"bits is {stage.bits}, and the language model's own weights learn",
            remedy="Quantised weights do not learn: use the stage qlora, or bits 16.",
        )
    if stage.lora_r < 1:
        raise ConfigError(f"lora_r is {stage.lora_r}", remedy="Give a rank of at least 1.")
    if stage.projector_lr is not None and rules.projector == "none":
        logger.warning("projector_lr has no effect: the projector does not learn")
    if stage.vision_lr is not None and rules.vision == "none" and not rules.positions:
        logger.warning("vision_lr has no effect: the vision tower does not learn")
    if stage.lora_bias != "none" and "language_model" not in rules.lora_parts:
        logger.warning("lora_bias has no effect: the language model gets no adapters")


def _last_layers(names: Sequence[str], count: int, part: Part) -> Iterator[str]:
    numbers = {int(match[1]) for match in map(_BLOCK.search, names) if match is not None}
    if len(numbers) < count:
        raise ConfigError(
            f"stage.learns.{part} is 'last:{count}', and the part has {len(numbers)} layers",
            remedy=f"Use last:{len(numbers)} at most, or all.",
        )
    kept = sorted(numbers)[-count:]
    for name in names:
        match = _BLOCK.search(name)
        if match is not None and int(match[1]) in kept:
            yield name
