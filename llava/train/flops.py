"""How many floating point operations a training step needs: counted matrix by matrix from the model itself.

    a weight of n numbers, per position:  2n forward
                                        + 2n when a gradient goes on to what is before it
                                        + 2n when it learns itself

So 6n for what learns, 4n for what is frozen with a gradient passing through (the language model while a
projector is aligned), 2n for what is frozen with nothing learning below it (the usual tower). The head runs
at supervised positions only, the tower has no layers above its tap. Attention adds 4 * width forward per pair
of positions that see each other, twice that backward. Recomputation (gradient checkpointing) and padding are
no useful work and are not counted; norms, activations and the optimizer are left out (below 1 %).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from llava.model.modeling import LlavaForCausalLM
from llava.train.metrics import StepRecord

Section = Literal["patches", "vision", "projector", "language", "head"]

_SAME_INPUT = re.compile(
    # These read the same hidden state, so none of them comes before another: as one "input" of their block.
    r"\.(?:[qkv]_proj|gate_proj|up_proj|w1|w3)(?=\.|$)|\.(?:base_layer|lora_A\.\w+)$"
)
_ATTENTION_OUTPUT = re.compile(r"\.(?:o_proj|out_proj|projection_layer)$")


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of forward and backward together."""

    per_token: float
    """Of the language model's weights, per position."""
    per_pair: float
    """Of its attention, per pair of positions that see each other."""
    per_target: float
    """Of the head, per supervised token."""
    per_picture: float
    """Of tower and projector."""

    def of_step(self, record: StepRecord) -> float:
        """Return the useful FLOPs of a step, over all ranks."""
        return (
            self.per_token * record.num_tokens
            + self.per_pair * record.num_attention_pairs
            + self.per_target * record.num_targets
            + self.per_picture * record.num_pictures
        )


def attention_pairs(lengths: tuple[int, ...] | list[int]) -> int:
    """Return how many pairs of positions see each other when attention is causal inside each sample."""
    return sum(length * (length + 1) // 2 for length in lengths)


def step_flops(model: nn.Module) -> StepFlops:
    """Count a model's FLOPs by its `requires_grad` flags, which must be final; LoRA layers included.

    model: LlavaForCausalLM, or a transformers language model alone. Call before it is sharded.
    """
    weights, attention = _count(model)
    if not isinstance(model, LlavaForCausalLM):
        width = _attention_width(model.config)
        return StepFlops(weights["language"], attention["language"] * width, weights["head"], 0.0)
    config = model.config
    vision = config.vision_config
    patches = _side(vision.image_size) // _side(vision.patch_size)
    positions = patches**2 + 1  # and the class token
    per_picture = (
        weights["patches"] * patches**2
        + weights["vision"] * positions
        + attention["vision"] * vision.hidden_size * positions**2
        + weights["projector"] * config.image_seq_length
    )
    width = _attention_width(config.text_config)
    return StepFlops(weights["language"], attention["language"] * width, weights["head"], per_picture)


def _count(model: nn.Module) -> tuple[dict[Section, float], dict[Section, float]]:
    """Return FLOPs per position of the weights, and per pair and unit of width of attention, by section.

    Modules come in the order in which data passes them: tower, projector, embedding, layers, head.
    """
    weights: dict[Section, float] = dict.fromkeys(("patches", "vision", "projector", "language", "head"), 0.0)
    attention = dict(weights)
    learns_before = False
    inputs: dict[str, bool] = {}
    for name, module in model.named_modules():
        section = _section(name)
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d):
            # Pixels need no gradient, whatever learns in the same embedding.
            place = _SAME_INPUT.sub(".input", _SAME_INPUT.sub(".input", name))
            passes = inputs.setdefault(place, learns_before) and isinstance(module, nn.Linear)
            place_of = "patches" if isinstance(module, nn.Conv2d) else section
            weights[place_of] += 2 * _size(module) * (1 + passes + learns)
        if _ATTENTION_OUTPUT.search(name):
            attention[section] += 4 * (3 if learns_before else 1)
        learns_before = learns_before or learns
    return weights, attention


def _section(name: str) -> Section:
    parts = name.split(".")
    if "vision_tower" in parts:
        return "vision"
    if "multi_modal_projector" in parts:
        return "projector"
    return "head" if "lm_head" in parts else "language"


def _size(module: nn.Linear | nn.Conv2d) -> int:
    """Return multiplications per output position; not `numel`, for 4-bit weights are packed."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    kernel = module.kernel_size
    return module.in_channels * module.out_channels * kernel[0] * kernel[1] // module.groups


def _attention_width(config: Any) -> int:
    heads = int(config.num_attention_heads)
    head_dim = config.head_dim if "head_dim" in config.to_dict() else None
    return heads * int(head_dim or config.hidden_size // heads)


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    return int(size if isinstance(size, int) else size[0])
