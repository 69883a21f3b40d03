"""Tokens, pixels, prompts and label masks. Names are imported from their homes on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.lazy import lazy_names

if TYPE_CHECKING:
    from llava.processing.images import load_image
    from llava.processing.pixels import ImageProcessor
    from llava.processing.processor import Processor
    from llava.processing.supervision import supervise
    from llava.processing.tokenizer import load_tokenizer, save_tokenizer

__all__ = ["ImageProcessor", "Processor", "load_image", "load_tokenizer", "save_tokenizer", "supervise"]

__getattr__ = lazy_names(
    __name__,
    {
        "ImageProcessor": "llava.processing.pixels",
        "Processor": "llava.processing.processor",
        "load_image": "llava.processing.images",
        "load_tokenizer": "llava.processing.tokenizer",
        "save_tokenizer": "llava.processing.tokenizer",
        "supervise": "llava.processing.supervision",
    },
)
