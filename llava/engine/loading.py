"""`llava.load`: from a path, a URL, or nothing at all, to an engine that answers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

from typing_extensions import TypedDict, Unpack

from llava.demo import embedded_model_path
from llava.engine.choosing import choose, format_of_bits
from llava.engine.engine import EngineOptions
from llava.engine.gguf_facts import is_gguf
from llava.engine.llama_cpp import LlamaCppEngine
from llava.engine.names import ENGINES, URL_SCHEMES, EngineName
from llava.engine.openvino.paging import Precision
from llava.engine.openvino_engine import OpenVinoEngine
from llava.engine.protocol import Engine
from llava.engine.remote import RemoteEngine
from llava.engine.torch_engine import TorchEngine
from llava.errors import ConfigError, UsageError
from llava.log import get_logger
from llava.model.builder import LoadOptions, load_model
from llava.model.device import dtype_name

logger = get_logger(__name__)

REMOTE_TEMPLATE = "vicuna_v1"
"""How a dialogue for an endpoint is shown; the endpoint applies its own."""


class LoadArguments(TypedDict, total=False):
    """How a checkpoint is loaded; the fields of LoadOptions."""

    base: str | None
    """The language model under a projector or LoRA checkpoint."""
    bits: Literal[4, 8] | None
    """Quantise the language model (torch: bitsandbytes; openvino: int4, int8)."""
    device: str | None
    """"cpu", "cuda", "cuda:1", "mps"; None takes the best present."""
    dtype: str | None
    """"float32", "bfloat16" or "float16"; None takes the device's own. openvino: what it computes in."""
    template: str | None
    """Prompt template, over the checkpoint's."""
    image_size: int | None
    """Input size of the vision tower in pixels, over the checkpoint's."""
    device_map: str | None
    """"auto" spreads blocks over several GPUs."""
    attn_implementation: str | None


@overload
def load(
    path: str | os.PathLike[str] | None = ...,
    *,
    engine: Literal["torch"] | None = ...,
    model: str | None = ...,
    api_key: str | None = ...,
    max_concurrency: int | None = ...,
    options: EngineOptions | None = ...,
    **loading: Unpack[LoadArguments],
) -> TorchEngine: ...


@overload
def load(
    path: str | os.PathLike[str] | None = ...,
    *,
    engine: EngineName | None,
    model: str | None = ...,
    api_key: str | None = ...,
    max_concurrency: int | None = ...,
    options: EngineOptions | None = ...,
    **loading: Unpack[LoadArguments],
) -> Engine: ...


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    engine: EngineName | None = None,
    model: str | None = None,
    api_key: str | None = None,
    max_concurrency: int | None = None,
    options: EngineOptions | None = None,
    **loading: Unpack[LoadArguments],
) -> Engine:
    """Load a checkpoint and return an engine for it; without a path, the embedded model.

    path: a checkpoint folder of any supported kind, a hub id, a GGUF file, or the http(s) address of an
    OpenAI-compatible endpoint.
    engine: None takes what reads the path: "remote" for an address, "llama.cpp" for a GGUF file, else
    "torch", whose `.model` is the transformers model. "auto" takes the fastest that is exact enough
    (`engine.choosing`), and says which. "openvino" converts once, into a cache folder.
    model, api_key, max_concurrency: of an endpoint: the name to ask for, where it has several, the key it
    wants, and how many requests it is given at a time (None: 32).
    options: limits of an engine in this process.
    base, bits, device, dtype, template, image_size, device_map, attn_implementation: see LoadArguments.
    Raises CheckpointError and its children, ConfigError, UsageError, DependencyError, RemoteError.
    """
    source: str | os.PathLike[str] = path if path is not None else embedded_model_path()
    name = _engine_for(source, engine)
    chosen = LoadOptions(**loading)
    if name == "remote":
        _check_unused(name, chosen, allowed=("template",))
        return RemoteEngine.connect(
            str(source),
            model=model,
            api_key=api_key,
            template=chosen.template or REMOTE_TEMPLATE,
            max_concurrency=max_concurrency,
        )
    if any(given is not None for given in (model, api_key, max_concurrency)):
        raise UsageError(
            f"model, api_key and max_concurrency are for an endpoint, and {source} is none",
            remedy="Leave them out.",
        )
    if name == "llama.cpp":
        _check_unused(name, chosen, allowed=("template",))
        return LlamaCppEngine.load(source, template=chosen.template)
    if name == "torch":
        return _load_torch(source, chosen, options)
    if name == "openvino":
        return _load_openvino(source, chosen, options)
    return _load_fastest(source, chosen, options)


def _engine_for(source: str | os.PathLike[str], wanted: EngineName | None) -> EngineName:
    """Return the engine of a path; raises ConfigError for an unknown one, UsageError for a wrong one."""
    if wanted is not None and wanted not in ENGINES:
        raise ConfigError.of_field("engine", wanted, ENGINES)
    text = os.fspath(source)
    own: EngineName | None = None
    if text.startswith(URL_SCHEMES):
        own = "remote"
    elif is_gguf(Path(text)):
        own = "llama.cpp"
    if own is None:
        if wanted == "remote":
            raise UsageError(f"{text} is no http(s) address", remedy="Give the address of an endpoint.")
        return wanted or "torch"
    if wanted not in (None, "auto", own):
        raise UsageError(f"{text} is for the engine {own!r}, not {wanted!r}", remedy="Leave the engine out.")
    return own


def _check_unused(name: str, options: LoadOptions, *, allowed: tuple[str, ...]) -> None:
    """Raise UsageError for options that an engine would have to ignore."""
    given = [
        field
        for field in options.__dataclass_fields__
        if field not in allowed and getattr(options, field) is not None
    ]
    if given:
        raise UsageError(f"the engine {name!r} does not know {', '.join(given)}", remedy="Leave it out.")


def _load_torch(
    source: str | os.PathLike[str], loading: LoadOptions, options: EngineOptions | None
) -> TorchEngine:
    loaded = load_model(source, loading)
    for notice in loaded.notices:
        logger.info(notice)
    return TorchEngine(loaded, options)


def _load_openvino(
    source: str | os.PathLike[str], loading: LoadOptions, options: EngineOptions | None
) -> OpenVinoEngine:
    _check_unused("openvino", loading, allowed=("base", "bits", "template", "image_size", "device", "dtype"))
    if loading.device not in (None, "auto", "cpu"):
        raise UsageError(
            f"the engine 'openvino' runs on the CPU, and device is {loading.device!r}",
            remedy="Use the torch engine there.",
        )
    return OpenVinoEngine.load(
        source,
        format=format_of_bits(loading.bits),
        precision=_precision(loading),
        base=loading.base,
        image_size=loading.image_size,
        template=loading.template,
        options=options,
    )


def _precision(loading: LoadOptions) -> Precision:
    """Return what OpenVINO shall compute in; raises UsageError for what it cannot."""
    name = dtype_name(loading.dtype)
    if name is None or name == "float32":
        return "float32"
    if name != "bfloat16":
        raise UsageError(
            f"the engine 'openvino' does not compute in {name}", remedy="Use float32 or bfloat16."
        )
    if loading.bits is not None:
        raise UsageError(
            f"the engine 'openvino' computes in float32 with {loading.bits}-bit weights",
            remedy="Leave the dtype or the bits out.",
        )
    return "bfloat16"


def _load_fastest(
    source: str | os.PathLike[str], loading: LoadOptions, options: EngineOptions | None
) -> Engine:
    choice = choose(source, loading)
    logger.info("engine: %s", choice.reason)
    if choice.engine == "openvino":
        engine: Engine = _load_openvino(source, replace(loading, dtype=choice.precision), options)
    else:
        engine = _load_torch(source, loading, options)
    if choice.is_notable:
        engine.notices = (f"engine: {choice.reason}", *engine.notices)
    return engine
