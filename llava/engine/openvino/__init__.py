"""The CPU engine's model side: checkpoints as OpenVINO graphs, converted once, run with paged attention.

support      what is run exactly, and what is refused
tracing      torch modules to graphs
conversion   graphs to files in a weight format
store        conversions on disk, and `load_openvino`
paging       compiled graphs and the memory of keys and values
blocks       which block of that memory belongs to whom
runner       the Runner that the engine schedules
"""

from __future__ import annotations

from llava.engine.openvino.paging import OpenVinoOptions
from llava.engine.openvino.runner import OpenVinoRunner
from llava.engine.openvino.store import load_openvino
from llava.engine.openvino.support import WEIGHT_FORMATS, WeightFormat

__all__ = ["WEIGHT_FORMATS", "OpenVinoOptions", "OpenVinoRunner", "WeightFormat", "load_openvino"]
