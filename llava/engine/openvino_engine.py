"""The openvino engine: a checkpoint converted once, that answers on the CPU."""

from __future__ import annotations

import os

from llava.engine.engine import ChatEngine, EngineOptions
from llava.engine.openvino.paging import OpenVinoOptions, Precision
from llava.engine.openvino.store import load_openvino
from llava.engine.openvino.support import WeightFormat


class OpenVinoEngine(ChatEngine):
    """A converted checkpoint that answers requests with OpenVINO."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        format: WeightFormat = "int8",
        precision: Precision = "float32",
        base: str | None = None,
        image_size: int | None = None,
        template: str | None = None,
        options: EngineOptions | None = None,
    ) -> OpenVinoEngine:
        """Load a checkpoint, converting it first where that was not done before; see `load_openvino`.

        precision: what is computed in, see `OpenVinoOptions`.
        """
        options = options or EngineOptions()
        frontend, runner = load_openvino(
            path,
            format=format,
            base=base,
            image_size=image_size,
            template=template,
            options=OpenVinoOptions(cache_bytes=options.cache_bytes, precision=precision),
        )
        return cls(frontend, runner, options)
