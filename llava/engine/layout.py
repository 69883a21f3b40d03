"""How the matrices of a language model lie in memory, where that decides how fast a few rows are multiplied.

nn.Linear keeps float32[out, in] row by row, and multiplies with its transpose. On a CPU the library's kernel
for a handful of rows is faster when the transpose is what lies in memory row by row. Measured on one core
(AVX2, in 768, out 2048, matrices that are in no cache; time of the usual layout over that of this one): 1 row
1.0, 2 rows 0.9, 4 rows 1.4, 8 rows 1.3, 12 rows 1.3, 16 and 32 rows 0.9. Values and shapes stay.
"""

from __future__ import annotations

import torch
from torch import nn


def lay_out_for_few_rows(*modules: nn.Module) -> None:
    """Let the float32 matrices of linear layers on the CPU lie transposed in memory, one after the other."""
    for module in modules:
        for layer in module.modules():
            if type(layer) is not nn.Linear:
                continue
            weight = layer.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous():
                weight.data = weight.data.t().contiguous().t()
