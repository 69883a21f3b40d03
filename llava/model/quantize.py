"""Quantise the language model's linear layers to 8 or 4 bits with bitsandbytes while they are loaded.

Place in the flow: `builder` calls `prepare` on the empty model and then `store` for every tensor, so that no
more than one layer is ever held unquantised. Vision tower, projector and lm_head stay as they are: layers are
chosen by their full name in the model, since transformers' own `llm_int8_skip_modules=["vision_tower"]` skips
nothing and the original quantised the projector. 4 bits are nf4 with double quantisation, as in the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from llava.errors import ConfigError, DependencyError, UsageError
from llava.model.mapping import LANGUAGE

if TYPE_CHECKING:
    from types import ModuleType

_DEVICES = ("cpu", "cuda", "xpu")
_OUTLIER_THRESHOLD = 6.0
"""LLM.int8(): columns of activations above it are multiplied unquantised (Dettmers et al. 2022)."""

_PACKED_ROWS = 32
_PACKED_COLUMNS = 64


def prepare(
    model: nn.Module,
    bits: Literal[4, 8],
    *,
    compute_dtype: torch.dtype,
    quant_type: Literal["nf4", "fp4"] = "nf4",
    double_quant: bool = True,
) -> None:
    """Replace the linear layers of the language model by empty quantised ones on the meta device.

    compute_dtype: in which dtype 4-bit layers multiply. quant_type, double_quant: of 4-bit layers. Raises
    DependencyError without bitsandbytes, ConfigError for other bits.
    """
    if bits not in (4, 8):
        raise ConfigError.of_field("bits", bits, ("4", "8"))
    _bitsandbytes()
    for name in quantised_names(model):
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        quantised = _linear4(plain, compute_dtype, quant_type, double_quant) if bits == 4 else _linear8(plain)
        model.set_submodule(name, quantised.requires_grad_(False).train(plain.training))
    # peft and the Trainer look for these to know what they must not touch.
    vars(model).update(is_loaded_in_4bit=bits == 4, is_loaded_in_8bit=bits == 8)


def quantised_names(model: nn.Module) -> list[str]:
    """Return the full names of the layers that are quantised: every nn.Linear of the language model."""
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(LANGUAGE) and type(module) is nn.Linear
    ]


def store(model: nn.Module, name: str, tensor: torch.Tensor, device: torch.device) -> bool:
    """Quantise `tensor` into the parameter `name` on `device` when its layer was prepared; else return False.

    Raises UsageError for a device on which bitsandbytes does not compute.
    """
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    bnb = _bitsandbytes()
    if leaf != "weight" or not isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
        return False
    if device.type not in _DEVICES:
        raise UsageError(
            f"Quantised layers do not compute on {device.type!r}",
            remedy="Use an NVIDIA GPU or the CPU, or load without --load-4bit and --load-8bit.",
        )
    if isinstance(module, bnb.nn.Linear4bit):
        empty = module.weight
        module.weight = bnb.nn.Params4bit(
            tensor,
            requires_grad=False,
            blocksize=empty.blocksize,
            compress_statistics=empty.compress_statistics,
            quant_type=empty.quant_type,
            quant_storage=empty.quant_storage,
            module=module,
        ).to(device)
    else:
        module.weight = bnb.nn.Int8Params(tensor, requires_grad=False, has_fp16_weights=False).to(device)
    return True


def _linear4(plain: nn.Linear, compute_dtype: torch.dtype, quant_type: str, double_quant: bool) -> nn.Module:
    with torch.device("meta"):
        layer: nn.Module = _bitsandbytes().nn.Linear4bit(
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=double_quant,
            quant_type=quant_type,
        )
    can_be_packed = plain.out_features % _PACKED_ROWS == 0 and plain.in_features % _PACKED_COLUMNS == 0
    if compute_dtype is not torch.bfloat16 or not can_be_packed:
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 packs 32 rows and 64 columns together, fails for other
        # sizes, and multiplies in bfloat16 whatever was asked for.
        vars(layer).update(support_avx512bf16_for_cpu=False)
    return layer


def _linear8(plain: nn.Linear) -> nn.Module:
    with torch.device("meta"):
        layer: nn.Module = _bitsandbytes().nn.Linear8bitLt(
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            has_fp16_weights=False,
            threshold=_OUTLIER_THRESHOLD,
        )
    return layer


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError:
        raise DependencyError.of_extra("bitsandbytes", "quantize", "loading in 4 or 8 bits") from None
    return bitsandbytes
