"""Write a GGUF file tensor by tensor: its plan of names, shapes and types first, then the data in that order.

The `gguf` package writes the bytes. A file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch

from llava.errors import DependencyError
from llava.export.gguf_types import encode, num_bytes

if TYPE_CHECKING:
    from gguf import GGUFWriter


class Planned(NamedTuple):
    """A tensor of a GGUF file."""

    name: str
    shape: tuple[int, ...]
    type: str
    """"F32", "F16", "Q8_0", "Q4_K", ..."""
    change: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What is done to the source's tensor first: a permutation of rows."""


class GgufFile:
    """One GGUF file in the making."""

    def __init__(
        self, path: Path, architecture: str, plan: Mapping[str, Planned], keys: Callable[[GGUFWriter], None]
    ) -> None:
        """Write all but the tensors' data; `plan`: parameter of the source -> tensor, in the source's order.

        `keys` adds the metadata. Raises DependencyError without the gguf package.
        """
        gguf = import_gguf()
        self._plan = plan
        self._writer = gguf.GGUFWriter(path, architecture)
        keys(self._writer)
        for planned in plan.values():
            type_id = gguf.GGMLQuantizationType[planned.type]
            self._writer.add_tensor_info(
                planned.name, planned.shape, None, num_bytes(planned.shape, planned.type), raw_dtype=type_id
            )
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()

    def store(self, name: str, tensor: torch.Tensor) -> None:
        """Write the data of a parameter, float32 on the CPU; one that is not in the plan is passed over."""
        planned = self._plan.get(name)
        if planned is None:
            return
        changed = tensor if planned.change is None else planned.change(tensor)
        self._writer.write_tensor_data(encode(changed.reshape(planned.shape), planned.type))

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def import_gguf() -> ModuleType:
    """Return the gguf package; raises DependencyError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise DependencyError.of_extra("gguf", "cpu", "writing GGUF files") from error
    return gguf
