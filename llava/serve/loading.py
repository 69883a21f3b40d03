"""The options that choose a model, and the engine they lead to, for `llava chat` and `llava.serve.cli`."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llava.command import note
from llava.templates import get_template

if TYPE_CHECKING:
    from llava.engine.engine import ChatEngine

_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how it is loaded."""

    path: str | None = None
    """Checkpoint folder; None is the embedded model."""
    base: str | None = None
    """Language model under a projector or LoRA checkpoint."""
    bits: Literal[4, 8] | None = None
    device: str | None = None
    dtype: str | None = None
    template: str | None = None
    image_size: int | None = None
    """Input size of the vision tower in pixels, over the checkpoint's."""
    image_aspect: Literal["pad", "square"] | None = None
    """What to do with pictures that are not square, over the checkpoint's rule."""
    device_map: Literal["auto", "balanced"] | None = None
    """Spread whole blocks over the GPUs; None keeps the model on one device."""

    def __post_init__(self) -> None:
        if self.template is not None:
            # Known before gigabytes are read.
            get_template(self.template)

    @property
    def name(self) -> str:
        """What to call the model."""
        return "InternVL-Chat-Tiny" if self.path is None else Path(self.path).name or self.path


def add_quantisation_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare --load-8bit and --load-4bit."""
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument(
        "--load-8bit",
        dest="bits",
        action="store_const",
        const=8,
        help="quantise the language model to 8 bits",
    )
    bits.add_argument("--load-4bit", dest="bits", action="store_const", const=4, help="to 4 bits")


def load_engine(options: ModelOptions) -> ChatEngine:
    """Load the model and say on stderr what the person should know about how; raises LlavaErrors."""
    import llava
    from llava.engine.engine import ChatEngine
    from llava.processing.pixels import ImageProcessor

    engine = llava.load(
        options.path,
        base=options.base,
        bits=options.bits,
        device=options.device,
        dtype=options.dtype,
        template=options.template,
        image_size=options.image_size,
        device_map=options.device_map,
    )
    for notice in engine.loaded.notices:
        note(f"note: {notice}")
    rules = engine.loaded.image_processor.rules
    if options.image_aspect is None or options.image_aspect == rules.aspect:
        return engine
    note(
        f"note: pictures that are not square: {options.image_aspect}, against the checkpoint's {rules.aspect}"
    )
    processor = ImageProcessor(replace(rules, aspect=options.image_aspect))
    return ChatEngine(replace(engine.loaded, image_processor=processor))


def fingerprint(folder: Path) -> str:
    """Return a hash that changes when a checkpoint does: names, sizes, and both ends of every file in it."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_HASHED_BYTES))
            stream.seek(max(0, size - _HASHED_BYTES))
            digest.update(stream.read(_HASHED_BYTES))
    return digest.hexdigest()
