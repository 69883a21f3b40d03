"""What this engine can run exactly, and what it refuses with the reason rather than run wrongly.

Paged attention of OpenVINO is causal over all earlier positions, with rotary positions computed from
position ids. Whatever a language model adds to that (windows, ALiBi, soft caps, positions that depend on the
length) would be dropped without an error by the transformation, so only what was compared with torch passes
(tests/engine/openvino).
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from llava.errors import CheckpointError, ConfigError, DependencyError
from llava.model.conventions import context_length
from llava.model.device import cpu_computes_bfloat16

if TYPE_CHECKING:
    from llava.model.config import LlavaConfig

WeightFormat = Literal["float32", "float16", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("float32", "float16", "int8", "int4")
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention is plain causal attention with rotary positions; compared with torch."""
ROPE_TYPES = ("default", "linear", "llama3")
"""Rotary scalings whose frequencies are constants."""
_TELEMETRY = "openvino_telemetry"
_WHY_NOT = {
    "mpt": "its ALiBi biases are not rotary positions",
    "gemma2": "its attention caps logits and alternates windows",
    "gemma3_text": "its attention alternates windows",
    "phi3": "its long-context positions depend on the length of the prompt",
    "gpt_neox": "it was not compared with torch",
}


def require_openvino(*, nncf: bool = False) -> None:
    """Raise DependencyError unless openvino (and nncf, which quantises) is installed.

    Both report each import and conversion to a statistics service unless their telemetry package is missing;
    to them it is, from here on.
    """
    for package in ("openvino", "nncf") if nncf else ("openvino",):
        if importlib.util.find_spec(package) is None:
            raise DependencyError.of_extra(package, "cpu", "the openvino engine")
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # None makes its import fail


def why_no_bfloat16(num_threads: int | None = None) -> str | None:
    """Return why OpenVINO cannot compute in bfloat16 here, None if it can. num_threads: None: all.

    With one thread, compiling its bfloat16 attention ends the process by SIGFPE (2026.4).
    """
    if not cpu_computes_bfloat16():
        return "this CPU has no units for bfloat16"
    if _num_threads(num_threads) < 2:
        return "OpenVINO needs two threads for bfloat16"
    return None


@functools.cache
def _num_threads(wanted: int | None) -> int:
    """Return how many threads a graph gets: OpenVINO knows affinity and a container's limits."""
    import openvino
    from openvino import opset13

    value = opset13.parameter([1], name="value")
    properties: dict[str, Any] = {} if wanted is None else {"INFERENCE_NUM_THREADS": wanted}
    compiled = openvino.compile_model(openvino.Model([opset13.relu(value)], [value]), "CPU", properties)
    num_threads: int = compiled.get_property("INFERENCE_NUM_THREADS")
    return num_threads


def check_format(weight_format: str) -> None:
    """Raise ConfigError for a weight format that is not known."""
    if weight_format not in WEIGHT_FORMATS:
        raise ConfigError.of_field("format", weight_format, WEIGHT_FORMATS)


def check_supported(config: LlavaConfig) -> None:
    """Raise CheckpointError naming what the model has that this engine would compute differently."""
    reasons = list(_reasons(config))
    if reasons:
        raise CheckpointError(
            f"The openvino engine cannot run this model exactly: {'; '.join(reasons)}",
            remedy="Use the torch engine.",
        )


def _reasons(config: LlavaConfig) -> Iterator[str]:
    text = config.text_config
    if text.model_type not in LANGUAGE_MODELS:
        why = _WHY_NOT.get(text.model_type, "it was not compared with torch")
        yield f"the language model is of type {text.model_type}, and {why}"
        return
    fields = text.to_dict()
    window = fields.get("sliding_window") if fields.get("use_sliding_window", True) else None
    if window is not None and window < context_length(config):
        yield f"attention has a sliding window of {window} tokens in a context of {context_length(config)}"
    others = set(fields.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if others:
        yield f"some layers have {', '.join(sorted(others))}"
    rope = fields.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        yield f"rotary positions are scaled by {rope_type!r}; known are {', '.join(ROPE_TYPES)}"
