"""LoRA adapters for training: put in by peft, named as the original names them when they are written.

In memory a layer `X` becomes `X.base_layer` (frozen), `X.lora_A.default` and `X.lora_B.default`; the model
stays of its own class. In files (peft's): `base_model.model.` + the original's name of X +
`.lora_A.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from llava.errors import ConfigError, WeightsError
from llava.model.adapters import base_name
from llava.model.mapping import targets
from llava.model.saving import is_adapter
from llava.train.config import StageOptions
from llava.train.stages import Part, part_of

ADAPTER = "default"
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.default\.weight")
_STORED_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")


def linear_names(model: nn.Module, parts: Sequence[Part]) -> list[str]:
    """Return the names of the linear layers of these parts, the head aside, before adapters are added."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(f"{name}.") in parts and name != "lm_head"
    ]


def add_adapters(model: nn.Module, linear: Sequence[str], stage: StageOptions, *, seed: int) -> None:
    """Put an adapter beside each of the `linear` layers: A random from `seed`, B zero, both float32."""
    if not linear:
        raise ConfigError(
            "The part that is to get adapters has no linear layers", remedy="Use another stage."
        )
    # Slow to import, and of no use to the other stages.
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=stage.lora_r,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules=list(linear),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def fill_adapters(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Lay stored adapter weights (keys as peft names them, with or without ".default") over the model's.

    Raises WeightsError for a name that the model has not, or another shape.
    """
    own = dict(model.named_parameters())
    for key, tensor in weights.items():
        match = _STORED_HALF.fullmatch(base_name(key))
        found = None if match is None else targets(f"{match['module']}.weight", "clip")
        target = None
        if match is not None and found is not None:
            module = found[0].name.removesuffix(".weight")
            target = own.get(f"{module}.lora_{match['half']}.{ADAPTER}.weight")
        if target is None:
            raise WeightsError(f"init_weights holds {key}, and no layer of this stage has such an adapter")
        if target.shape != tensor.shape:
            raise WeightsError(
                f"{key} in init_weights has shape {list(tensor.shape)} and not {list(target.shape)}",
                remedy="Give the lora_r of the run that it comes from.",
            )
        with torch.no_grad():
            target.copy_(tensor)
