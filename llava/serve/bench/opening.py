"""From what the command line names to an engine that can be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.engine.names import URL_SCHEMES, EngineName

if TYPE_CHECKING:
    import torch

    from llava.engine.protocol import Engine

MAX_CONCURRENCY = 256
"""Clients at a time, and requests that an endpoint gets at a time."""


def open_engine(path: str | None, *, engine: EngineName = "auto", api_key: str | None = None) -> Engine:
    """Load a checkpoint or GGUF file, or connect to an http(s) endpoint; raises LlavaErrors."""
    import llava
    from llava.engine.remote import RemoteEngine

    if path is not None and path.startswith(URL_SCHEMES) and engine in ("auto", "remote"):
        # Here the endpoint is what is measured, not our own queue before it.
        return RemoteEngine.connect(path, api_key=api_key, max_concurrency=MAX_CONCURRENCY)
    return llava.load(path, engine=engine, api_key=api_key)


def device_of(engine: Engine) -> torch.device:
    """Return where an engine in this process reads its weights from."""
    import torch

    from llava.engine.torch_engine import TorchEngine

    return engine.loaded.device if isinstance(engine, TorchEngine) else torch.device("cpu")
