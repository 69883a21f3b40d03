"""Vision-language chat models of the LLaVA / InternVL-Chat V1.0 family.

    import llava
    engine = llava.load()                                   # the embedded model, or a checkpoint folder
    engine.ask("How many objects are there?", images=["photo.jpg"])

Importing this package is cheap: torch and transformers are imported when something is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.engine.loading import load
    from llava.engine.request import Answer, Request, SamplingParams
    from llava.model import LlavaLlamaForCausalLM

__version__ = "0.1.0"

__all__ = ["Answer", "LlavaLlamaForCausalLM", "Request", "SamplingParams", "__version__", "load"]

_HOMES = {
    "load": "llava.engine.loading",
    "Answer": "llava.engine.request",
    "Request": "llava.engine.request",
    "SamplingParams": "llava.engine.request",
    "LlavaLlamaForCausalLM": "llava.model",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llava' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
