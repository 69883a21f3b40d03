"""How much memory a model takes up as it answers: keys and values, and the weights that a token reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM

_SHARE_OF_HOST = 0.3
_MAX_HOST_BYTES = 4 << 30
_SHARE_OF_GPU = 0.8
"""Of what is free once the weights are there; the rest is for the pass itself."""


def bytes_per_token(model: LlavaForCausalLM) -> int:
    """Return the bytes of one position's keys and values in all layers."""
    config = model.config.get_text_config()
    fields = config.to_dict()
    num_heads = config.num_attention_heads
    num_kv_heads = fields.get("num_key_value_heads") or num_heads
    head_dim = fields.get("head_dim") or config.hidden_size // num_heads
    itemsize = model.get_input_embeddings().weight.dtype.itemsize
    return 2 * int(config.num_hidden_layers) * int(num_kv_heads) * int(head_dim) * itemsize


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a LLaVA model that are read for one new token: language model and head.

    The table of token embeddings counts only where it is the head too; otherwise one row of it is read.
    """
    sizes = {
        name: parameter.numel() * parameter.element_size() for name, parameter in model.named_parameters()
    }
    has_own_head = any(name.startswith("lm_head.") for name in sizes)
    return sum(
        size
        for name, size in sizes.items()
        if name.startswith("lm_head.")
        or (".language_model." in f".{name}" and not (has_own_head and "embed_tokens" in name))
    )


def default_cache_bytes(device: torch.device) -> int:
    """Return the bytes that keys and values may take on a device, from what is free there now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_GPU)
    return min(int(psutil.virtual_memory().available * _SHARE_OF_HOST), _MAX_HOST_BYTES)
