"""The options that choose a model, and the engine they lead to, for every command that loads one."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llava.command import note
from llava.engine.names import ENGINES, URL_SCHEMES, EngineName
from llava.errors import UsageError
from llava.files import fingerprint
from llava.templates import get_template

if TYPE_CHECKING:
    from llava.engine.protocol import Engine

API_KEY_VARIABLE = "OPENAI_API_KEY"
"""Holds the key of an endpoint, as other clients of its kind expect it."""


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how it is loaded."""

    path: str | None = None
    """Checkpoint folder, GGUF file or address of an endpoint; None is the embedded model."""
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

    engine: EngineName = "auto"
    """What answers; "auto" is the fastest that is exact enough."""
    endpoint_model: str | None = None
    """Which of an endpoint's models answers; None is the first that it lists."""
    endpoint_concurrency: int | None = None
    """Requests that an endpoint is given at a time; None is RemoteOptions' own limit."""

    def __post_init__(self) -> None:
        if self.template is not None:
            # Known before gigabytes are read.
            get_template(self.template)

    @property
    def is_endpoint(self) -> bool:
        """Whether the model is behind an address."""
        return self.path is not None and self.path.startswith(URL_SCHEMES)

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


def add_engine_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare --engine and --dtype."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what answers (%(default)s: the fastest that is exact enough)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: the device's own"
    )


def device_present(name: str | None) -> str | None:
    """Return the device to ask for; "cuda" was the original's default, and scripts pass it on any machine."""
    if name is None or not name.startswith("cuda"):
        return name
    from llava.model.device import resolve_device

    try:
        resolve_device(name)
    except UsageError as error:
        note(f"warning: {error.cause}; using the best device present")
        return None
    return name


def device_map_of(device: str | None) -> Literal["auto"] | None:
    """Spread the model where the original did: over all GPUs, when there are several and none is chosen."""
    if device not in (None, "cuda"):
        return None
    import torch

    return "auto" if torch.cuda.device_count() > 1 else None


def load_engine(options: ModelOptions) -> Engine:
    """Load the model and say on stderr what the person should know about how; raises LlavaErrors."""
    import llava
    from llava.engine.engine import ChatEngine

    engine = llava.load(
        options.path,
        engine=options.engine,
        base=options.base,
        bits=options.bits,
        device=options.device,
        dtype=options.dtype,
        template=options.template,
        image_size=options.image_size,
        device_map=options.device_map,
        model=options.endpoint_model,
        api_key=os.environ.get(API_KEY_VARIABLE) if options.is_endpoint else None,
        max_concurrency=options.endpoint_concurrency,
    )
    for notice in engine.notices:
        note(f"note: {notice}")
    if options.image_aspect is None:
        return engine
    if not isinstance(engine, ChatEngine):
        raise UsageError(
            f"{engine.name} prepares pictures itself, so image_aspect has no effect on it",
            remedy="Leave --image-aspect-ratio out.",
        )
    rules = engine.processor.image_processor.rules
    if options.image_aspect != rules.aspect:
        note(
            f"note: pictures that are not square: {options.image_aspect}, "
            f"against the checkpoint's {rules.aspect}"
        )
        engine.use_picture_rules(replace(rules, aspect=options.image_aspect))
    return engine


def engine_settings(engine: Engine, options: ModelOptions) -> dict[str, object]:
    """Return what answers depend on besides question and sampling: the model's content and how it runs."""
    from llava.engine.engine import ChatEngine

    rules = engine.processor.image_processor.rules if isinstance(engine, ChatEngine) else None
    return {
        "model": options.name,
        "fingerprint": options.path if options.is_endpoint else fingerprint(_files(options)),
        "base": options.base,
        "bits": options.bits,
        # Which of several equal devices it was makes no difference.
        "engine": re.sub(r"\bcuda:\d+", "cuda", engine.name),
        "template": engine.template.name,
        "image": rules.to_dict() if rules is not None else None,
    }


def _files(options: ModelOptions) -> Path:
    """Return where the model's files are."""
    from llava.demo import embedded_model_path
    from llava.model.checkpoint import recognise

    path = Path(options.path) if options.path is not None else embedded_model_path()
    return path if path.exists() else recognise(path).path
