"""Models: recognise, load, convert and save checkpoints. Names are imported from their homes on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.lazy import lazy_names

if TYPE_CHECKING:
    from llava.model.config import LlavaConfig, LlavaMptConfig
    from llava.model.modeling import LlavaForCausalLM, LlavaLlamaForCausalLM, LlavaMptForCausalLM

__all__ = [
    "LlavaConfig",
    "LlavaForCausalLM",
    "LlavaLlamaForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
]

__getattr__ = lazy_names(
    __name__,
    {
        "LlavaConfig": "llava.model.config",
        "LlavaMptConfig": "llava.model.config",
        "LlavaForCausalLM": "llava.model.modeling",
        "LlavaLlamaForCausalLM": "llava.model.modeling",
        "LlavaMptForCausalLM": "llava.model.modeling",
    },
)
