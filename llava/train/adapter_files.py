"""The files of a LoRA run: adapter_config.json and tensors as peft and the original's loader name them.

r rank; A float[r, in], B float[out, r]; what is added to a layer is scale * B A.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from llava.model.mapping import LANGUAGE
from llava.model.saving import is_adapter, plain_name
from llava.train.config import StageOptions
from llava.train.lora import ADAPTER
from llava.train.stages import Part, part_of

_HALF = re.compile(rf"(?P<module>.+)\.lora_(?P<half>[AB])\.{ADAPTER}\.weight")


def adapter_config(model: nn.Module, stage: StageOptions, *, base_name: str) -> dict[str, Any]:
    """Return adapter_config.json as peft wrote it in the original's time; newer versions read it too.

    The layers are named by the last parts of their names, as the original did; its model had no tower when
    adapters were attached, so that they mean the language model's alone.
    """
    modules = {
        match["module"].rpartition(".")[2]
        for match in (_HALF.fullmatch(name) for name, _ in model.named_parameters())
        if match is not None and part_of(match["module"]) == "language_model"
    }
    alpha = stage.lora_alpha
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": stage.lora_bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": stage.lora_dropout,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": stage.lora_r,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted(modules),
        "task_type": "CAUSAL_LM",
    }


def adapter_tensors(
    trained: Mapping[str, torch.Tensor], stage: StageOptions, *, text_type: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (key, tensor) of adapter_model.safetensors: the language model's adapters and trained biases.

    trained: what learned, by the model's names. A key is `base_model.model.` and the name in the base model.
    """
    root = "transformer." if text_type == "mpt" else "model."
    for name, tensor in trained.items():
        if part_of(name) != "language_model":
            continue
        is_bias = stage.lora_bias != "none" and name.endswith(".bias")
        if not (is_adapter(name) or is_bias):
            continue
        inner = root + name.removeprefix(LANGUAGE) if name.startswith(LANGUAGE) else name
        # A wrapped layer's bias keeps ".base_layer", under which peft looks for it.
        yield f"base_model.model.{inner.replace(f'.{ADAPTER}.', '.')}", tensor.contiguous()


def merged_tensors(
    model: nn.Module,
    trained: Mapping[str, torch.Tensor],
    base: Callable[[str], torch.Tensor],
    *,
    part: Part | None = None,
) -> dict[str, torch.Tensor]:
    """Return {plain name of a weight: W + scale B A, float32} for every layer with an adapter.

    trained: adapter halves by the model's names. base: reads W by its plain name. part: only this one's.
    """
    merged: dict[str, torch.Tensor] = {}
    for name, a in trained.items():
        match = _HALF.fullmatch(name)
        if match is None or match["half"] != "A" or (part is not None and part_of(name) != part):
            continue
        module: Any = model.get_submodule(match["module"])
        b = trained[name.replace(".lora_A.", ".lora_B.")]
        plain = plain_name(f"{match['module']}.weight")
        merged[plain] = base(plain).float() + (b.float() @ a.float()) * module.scaling[ADAPTER]
    return merged
