"""Vision-language chat models of the LLaVA / InternVL-Chat V1.0 family.

    import llava
    engine = llava.load()                                   # the embedded model, or a checkpoint folder
    engine.ask("How many objects are there?", images=["photo.jpg"])

Importing this package is cheap: torch and transformers are imported when something is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.lazy import lazy_names

if TYPE_CHECKING:
    from llava.engine.loading import load
    from llava.engine.request import Answer, Request, SamplingParams
    from llava.model import LlavaLlamaForCausalLM

__version__ = "0.1.0"

__all__ = ["Answer", "LlavaLlamaForCausalLM", "Request", "SamplingParams", "__version__", "load"]

__getattr__ = lazy_names(
    __name__,
    {
        "load": "llava.engine.loading",
        "Answer": "llava.engine.request",
        "Request": "llava.engine.request",
        "SamplingParams": "llava.engine.request",
        "LlavaLlamaForCausalLM": "llava.model",
    },
)
