"""A loaded model to the files that the runner maps: tower, decoder, token embedding.

    LoadedModel -> graphs (`tracing`) -> narrower weights -> vision.xml, decoder.xml, embeddings.npy

The decoder's matrices are stored in the chosen format, the tower's in 16 bits by every format but float32: it
runs once a picture. What is no matrix keeps float32: it is small, and `save_model`'s own narrowing would also
round the frequencies of the rotary positions, which moves positions of 1000 and more by whole angles. Nothing
here knows where the files go or how long they are good for; that is `store`'s.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llava.engine.openvino.support import WeightFormat, check_format, check_supported, require_openvino
from llava.engine.openvino.tracing import trace_decoder, trace_vision
from llava.errors import FileError

if TYPE_CHECKING:
    import openvino

    from llava.model.modeling import LlavaForCausalLM

VISION, DECODER, EMBEDDINGS = "vision.xml", "decoder.xml", "embeddings.npy"
MAX_GROUP = 128
"""Weights that share one scale in int4."""
STEPS = ("vision tower", "token embedding", "language model", "weights")
"""What `convert` reports, in order."""

Report = Callable[[str], None]


def convert(model: LlavaForCausalLM, folder: Path, weight_format: WeightFormat, *, report: Report) -> None:
    """Write the graphs of a float32 model on the CPU to `folder`.

    report: called with each of STEPS before it begins. The decoder's graph shares the model's memory: the
    peak is the model and its narrower copy. Raises CheckpointError for a model that cannot be run exactly,
    DependencyError, ConfigError.
    """
    check_format(weight_format)
    check_supported(model.config)
    require_openvino(nncf=weight_format in ("int8", "int4"))
    report(STEPS[0])
    _save(trace_vision(model, _image_size(model)), folder / VISION, narrow=weight_format != "float32")
    report(STEPS[1])
    dtype = np.float32 if weight_format == "float32" else np.float16
    np.save(folder / EMBEDDINGS, model.get_input_embeddings().weight.detach().numpy().astype(dtype))
    report(STEPS[2])
    graph = trace_decoder(model)
    report(STEPS[3])
    if weight_format in ("int8", "int4"):
        graph = _quantised(graph, weight_format, group_size(model))
    _save(graph, folder / DECODER, narrow=weight_format != "float32")


def group_size(model: LlavaForCausalLM) -> int:
    """Return the largest group, at most MAX_GROUP, that divides the inputs of every matrix of the decoder."""
    text = model.config.get_text_config()
    widths = {module.in_features for module in model.model.language_model.modules() if _is_linear(module)}
    common = math.gcd(text.hidden_size, *widths)
    return next(size for size in range(min(MAX_GROUP, common), 0, -1) if common % size == 0)


def _is_linear(module: object) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _image_size(model: LlavaForCausalLM) -> int:
    size = model.config.vision_config.image_size
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _quantised(graph: openvino.Model, weight_format: WeightFormat, group: int) -> openvino.Model:
    """Return the graph with its matrices in 8 bits, or 4 with the head in 8."""
    import nncf

    # nncf's own `set_log_level` would also raise the level of the program's handlers.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # nncf draws a bar of its own on stdout, which belongs to the caller's answers.
    with contextlib.redirect_stdout(io.StringIO()):
        if weight_format == "int8":
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
        return nncf.compress_weights(
            graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=group, ratio=1.0
        )


def _save(graph: openvino.Model, path: Path, *, narrow: bool) -> None:
    import openvino

    if narrow:
        _narrow_matrices(graph)
    try:
        openvino.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise FileError(
            f"{path.name} of the converted model cannot be written below {path.parent.parent}",
            remedy="See that the disk is not full, or give another cache folder.",
        ) from error


def _narrow_matrices(graph: openvino.Model) -> None:
    """Store the float32 operands of matrix products and convolutions in 16 bits, widened when used."""
    import openvino
    from openvino import opset13

    for node in graph.get_ops():
        if node.get_type_name() not in ("MatMul", "Convolution"):
            continue
        source = node.input(1).get_source_output()
        constant = source.get_node()
        if constant.get_type_name() == "Constant" and source.get_element_type() == openvino.Type.f32:
            narrow = opset13.constant(constant.data.astype(np.float16))
            widened = opset13.convert(narrow, "f32")
            widened.set_friendly_name(constant.get_friendly_name())
            node.input(1).replace_source_output(widened.output(0))
