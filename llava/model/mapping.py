"""Weight names: from the original's (and llava-hf's) to the model's in memory, and back.

Place in the flow: `filling` asks where each tensor of a checkpoint goes; `saving` asks what each parameter
was called. In memory: `model.language_model.*`, `model.multi_modal_projector.*`, `model.vision_tower.*`,
`lm_head.*`. The table is that of spec 2.2 and 2.6; a fused qkv becomes three tensors, by rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from llava.model.towers import Family

TOWER_PREFIX = "model.vision_tower.vision_tower."
"""How the original names tower weights inside a checkpoint."""
PROJECTOR = "model.multi_modal_projector."
LANGUAGE = "model.language_model."
TOWER = "model.vision_tower."


class Target(NamedTuple):
    """A parameter, and which of `num_parts` equal row blocks of the stored tensor it is."""

    name: str
    part: int = 0
    num_parts: int = 1


_INTERNVIT_RULES = (
    (r"embeddings\.class_embedding", "embeddings.cls_token"),
    (r"embeddings\.position_embedding", "embeddings.position_embeddings"),
    (r"embeddings\.patch_embedding\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"encoder\.layers\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.projection_layer.\2"),
    (r"encoder\.layers\.(\d+)\.attn\.([qk]_norm)\.(\w+)", r"encoder.layer.\1.attention.\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"encoder.layer.\1.mlp.\2.\3"),
    (r"encoder\.layers\.(\d+)\.norm1\.(\w+)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"encoder\.layers\.(\d+)\.norm2\.(\w+)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"encoder\.layers\.(\d+)\.ls([12])", r"encoder.layer.\1.lambda_\2"),
)
_INTERNVIT = tuple((re.compile(pattern), replacement) for pattern, replacement in _INTERNVIT_RULES)
_INTERNVIT_BACK = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"embeddings\.cls_token", "embeddings.class_embedding"),
        (r"embeddings\.position_embeddings", "embeddings.position_embedding"),
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"embeddings.patch_embedding.\1"),
        (r"encoder\.layer\.(\d+)\.attention\.projection_layer\.(\w+)", r"encoder.layers.\1.attn.proj.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.([qk]_norm)\.(\w+)", r"encoder.layers.\1.attn.\2.\3"),
        (r"encoder\.layer\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"encoder.layers.\1.mlp.\2.\3"),
        (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"encoder.layers.\1.norm1.\2"),
        (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"encoder.layers.\1.norm2.\2"),
        (r"encoder\.layer\.(\d+)\.lambda_([12])", r"encoder.layers.\1.ls\2"),
    )
)
_QKV = re.compile(r"encoder\.layers\.(\d+)\.attn\.qkv\.(\w+)")
_QKV_PART = re.compile(r"encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(\w+)")

_UNUSED = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r".*\.rotary_emb\.inv_freq", "rotary frequencies are computed"),
        (r".*\.position_ids", "position numbers are computed"),
        (r".*vision_tower\.(text_model\..*|text_projection\..*)", "the text half of CLIP"),
        (r".*vision_tower\.(visual_projection\..*|logit_scale)", "CLIP's contrastive head"),
    )
)
_TOWER_LAYER = re.compile(r"model\.vision_tower\..*?encoder\.layers?\.(\d+)\.")


def unused_reason(key: str, *, num_tower_layers: int) -> str | None:
    """Return why a tensor of a checkpoint is rightly left out, or None when it must be used."""
    for pattern, reason in _UNUSED:
        if pattern.fullmatch(key):
            return reason
    layer = _TOWER_LAYER.match(key)
    if layer is not None and int(layer[1]) >= num_tower_layers:
        return "vision tower layers above the tapped one are not built"
    return None


def targets(key: str, family: Family) -> list[Target] | None:
    """Return the parameters that a tensor under the original's name fills, or None for an unknown name."""
    if key.startswith(TOWER_PREFIX):
        return _tower_targets(key[len(TOWER_PREFIX) :], family)
    if key.startswith("lm_head."):
        return [Target(key)]
    match = re.fullmatch(r"(?:model|transformer)\.(mm_projector\.)?(.+)", key)
    if match is None or match[2].startswith("vision_tower."):
        return None
    return [Target((PROJECTOR if match[1] else LANGUAGE) + match[2])]


def _tower_targets(name: str, family: Family) -> list[Target] | None:
    if family == "clip":
        return [Target(TOWER + name.removeprefix("vision_model."))]
    fused = _QKV.fullmatch(name)
    if fused is not None:
        base = f"{TOWER}encoder.layer.{fused[1]}.attention."
        return [Target(f"{base}{part}_proj.{fused[2]}", index, 3) for index, part in enumerate("qkv")]
    for pattern, replacement in _INTERNVIT:
        match = pattern.fullmatch(name)
        if match is not None:
            return [Target(TOWER + match.expand(replacement))]
    # Native names (`encoder.layer.N.attention.q_proj`) come from llava-hf layouts as they are.
    return [Target(TOWER + name)]


def from_hf(key: str) -> str:
    """Return the original's name of a tensor in a llava-hf checkpoint, old layout or new."""
    key = re.sub(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)", "", key)
    rules = (
        (r"language_model\.lm_head\.(.*)", r"lm_head.\1"),
        (r"language_model\.model\.(.*)", r"model.\1"),
        (r"language_model\.(.*)", r"model.\1"),
        (r"vision_tower\.(.*)", rf"{TOWER_PREFIX}\1"),
        (r"multi_modal_projector\.linear_1\.(\w+)", r"model.mm_projector.0.\1"),
        (r"multi_modal_projector\.linear_2\.(\w+)", r"model.mm_projector.2.\1"),
    )
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match is not None:
            return match.expand(replacement)
    return key


def from_projector_file(key: str) -> str:
    """Return the original's name of a tensor in mm_projector.bin, whatever stands before it there."""
    if "mm_projector." in key:
        return "model.mm_projector." + key.rsplit("mm_projector.", 1)[1]
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if key.endswith(name):
            return ("" if name.startswith("lm_head") else "model.") + name
    if key.endswith("vision_tower.embeddings.position_embedding"):
        return TOWER_PREFIX + "embeddings.position_embedding"
    return key


def original_tensors(
    parameters: Iterable[tuple[str, torch.Tensor]], *, family: Family, text_type: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (original name, tensor) for the model's named parameters, q, k and v fused again.

    Contract: q, k and v of a layer come in this order, as `named_parameters` gives them; all three or none.
    """
    waiting: dict[tuple[str, str], list[torch.Tensor]] = {}
    for name, tensor in parameters:
        part = _QKV_PART.fullmatch(name[len(TOWER) :]) if name.startswith(TOWER) else None
        if part is None or family == "clip":
            yield _original_name(name, family, text_type), tensor
            continue
        layer, leaf = part[1], part[3]
        found = waiting.setdefault((layer, leaf), [])
        assert part[2] == "qkv"[len(found)], "q, k and v did not follow each other"
        found.append(tensor)
        if len(found) == 3:
            yield f"{TOWER_PREFIX}encoder.layers.{layer}.attn.qkv.{leaf}", torch.cat(found)
            del waiting[layer, leaf]
    assert not waiting, "a layer has not all of q, k and v"


def _original_name(name: str, family: Family, text_type: str) -> str:
    root = "transformer." if text_type == "mpt" else "model."
    if name.startswith(PROJECTOR):
        return f"{root}mm_projector.{name[len(PROJECTOR) :]}"
    if name.startswith(LANGUAGE):
        return root + name[len(LANGUAGE) :]
    if not name.startswith(TOWER):
        return name
    inner = name[len(TOWER) :]
    if family == "clip":
        return f"{TOWER_PREFIX}vision_model.{inner}"
    for pattern, replacement in _INTERNVIT_BACK:
        match = pattern.fullmatch(inner)
        if match is not None:
            return TOWER_PREFIX + match.expand(replacement)
    return TOWER_PREFIX + inner
