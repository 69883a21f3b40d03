"""Models: recognise, load, convert and save checkpoints. Names are imported from their homes on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "LlavaConfig": "llava.model.config",
    "LlavaMptConfig": "llava.model.config",
    "LlavaForCausalLM": "llava.model.modeling",
    "LlavaLlamaForCausalLM": "llava.model.modeling",
    "LlavaMptForCausalLM": "llava.model.modeling",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
