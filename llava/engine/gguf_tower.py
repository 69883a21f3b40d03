"""The CLIP tower and projector of an mmproj file, in torch: what a picture's features really are.

llama.cpp's own graph for them is off by one (`feature_carrier` says how), so the file is only read here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.engine.gguf_facts import gguf_value, import_gguf, open_gguf
from llava.errors import ConfigError, WeightsError
from llava.model.device import resolve_device

if TYPE_CHECKING:
    from gguf import GGUFReader

_OUTSIDE = {
    "v.class_embd": "embeddings.class_embedding",
    "v.patch_embd.weight": "embeddings.patch_embedding.weight",
    "v.position_embd.weight": "embeddings.position_embedding.weight",
    "v.pre_ln.weight": "pre_layrnorm.weight",
    "v.pre_ln.bias": "pre_layrnorm.bias",
}
_BLOCK = re.compile(r"v\.blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
_IN_BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_UNUSED_PREFIX = "post_layernorm."


class GgufTower:
    """Pictures to features, in float32."""

    def __init__(self, path: Path) -> None:
        """Read an mmproj file; raises ConfigError for another projector, WeightsError for missing tensors."""
        reader = open_gguf(path)
        kind = gguf_value(reader, "clip.projector_type", "mlp")
        if kind != "mlp":
            raise ConfigError(
                f"the projector of {path} is of type {kind!r}, and only LLaVA-1.5's ('mlp') is known here",
                remedy="Serve it with llama-server, and give its URL.",
            )
        self.device = resolve_device(None)
        config = _config(reader)
        tensors = _tensors(reader)
        self._tower = CLIPVisionModel(config)
        _fill(self._tower, _tower_weights(tensors, config), path)
        width = tensors["mm.0.weight"].shape[0]
        self._projector = nn.Sequential(
            nn.Linear(config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        _fill(
            self._projector,
            {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("mm.")},
            path,
        )
        self._tower.eval().requires_grad_(False).to(self.device)
        self._projector.eval().requires_grad_(False).to(self.device)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return features float32[B, N, C] of float32[B, 3, S, S]; the class is left out."""
        with torch.inference_mode():
            hidden = self._tower(pixel_values.to(self.device)).last_hidden_state[:, 1:]
            features: torch.Tensor = self._projector(hidden)
        return features


def _config(reader: GGUFReader) -> CLIPVisionConfig:
    def number(key: str) -> Any:
        return gguf_value(reader, f"clip.vision.{key}", 0)

    layers = gguf_value(reader, "clip.vision.feature_layer", None)
    return CLIPVisionConfig(
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        # Where a file does not say, llama.cpp takes the features before the last block, as LLaVA-1.5 does.
        num_hidden_layers=max(layers) if layers else number("block_count") - 1,
        num_attention_heads=number("attention.head_count"),
        image_size=number("image_size"),
        patch_size=number("patch_size"),
        layer_norm_eps=number("attention.layer_norm_epsilon") or 1e-5,
        hidden_act="gelu" if gguf_value(reader, "clip.use_gelu", False) else "quick_gelu",
    )


def _tensors(reader: GGUFReader) -> dict[str, torch.Tensor]:
    quants = import_gguf().quants
    return {
        tensor.name: torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }


def _tower_weights(tensors: dict[str, torch.Tensor], config: CLIPVisionConfig) -> dict[str, torch.Tensor]:
    """Rename the tensors of the blocks that are used; old files have the two layers of an MLP swapped."""
    names = dict(_IN_BLOCK)
    first_up = tensors.get("v.blk.0.ffn_up.weight")
    if first_up is not None and first_up.shape[0] != config.intermediate_size:
        names["ffn_up"], names["ffn_down"] = names["ffn_down"], names["ffn_up"]
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if name in _OUTSIDE:
            weights[_OUTSIDE[name]] = tensor
        elif block is not None and int(block[1]) < config.num_hidden_layers and block[2] in names:
            weights[f"encoder.layers.{block[1]}.{names[block[2]]}.{block[3]}"] = tensor
    return weights


def _fill(module: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights into a module; raises WeightsError naming what is missing or misshapen."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    needed = {name for name in shapes if not name.startswith(_UNUSED_PREFIX)}
    wrong = [name for name in sorted(needed) if name not in weights or weights[name].shape != shapes[name]]
    if wrong:
        raise WeightsError(
            f"{path} lacks tensors, or has them in another shape: {', '.join(wrong[:5])}",
            remedy="Get the file again, or export it anew.",
        )
    module.load_state_dict({name: weights[name] for name in needed}, strict=False)
