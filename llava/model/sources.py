"""Where tensors come from: one face for a folder of shards, a projector file, a merged adapter, a dict.

Place in the flow: `weights.WeightFiles` and `adapters` give sources with the original's names, `filling`
reads them tensor by tensor into the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch


class TensorSource(Protocol):
    """Tensors by name; only `read` touches their data."""

    def keys(self) -> Iterable[str]:
        """Return the names in the order in which they are best read."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        ...

    def dtype(self, key: str) -> torch.dtype:
        """Return a tensor's dtype without reading it."""
        ...

    def read(self, key: str) -> torch.Tensor:
        """Read a tensor to the CPU; raises WeightsError for a corrupt file."""
        ...


class TensorDict:
    """Tensors in memory as a source."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def keys(self) -> Iterable[str]:
        """Return the names in the dict's order."""
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Return the tensor's dtype."""
        return self._tensors[key].dtype

    def read(self, key: str) -> torch.Tensor:
        """Return the tensor itself."""
        return self._tensors[key]


class Renamed:
    """Another source under new names; a tensor whose new name is None is left out."""

    def __init__(self, source: TensorSource, rename: Callable[[str], str | None]) -> None:
        self._source = source
        self._old_names: dict[str, str] = {}
        for key in source.keys():
            new_name = rename(key)
            if new_name is not None:
                self._old_names[new_name] = key

    def keys(self) -> Iterable[str]:
        """Return the new names in the old order."""
        return self._old_names.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return self._source.shape(self._old_names[key])

    def dtype(self, key: str) -> torch.dtype:
        """Return the tensor's dtype."""
        return self._source.dtype(self._old_names[key])

    def read(self, key: str) -> torch.Tensor:
        """Read the tensor of the old name."""
        return self._source.read(self._old_names[key])


class Layered:
    """Several sources as one; where two have a name, the first one wins."""

    def __init__(self, *sources: TensorSource) -> None:
        self._homes: dict[str, TensorSource] = {}
        for source in sources:
            for key in source.keys():
                self._homes.setdefault(key, source)

    def keys(self) -> Iterator[str]:
        """Return all names, source by source."""
        return iter(self._homes)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return self._homes[key].shape(key)

    def dtype(self, key: str) -> torch.dtype:
        """Return the tensor's dtype."""
        return self._homes[key].dtype(key)

    def read(self, key: str) -> torch.Tensor:
        """Read the tensor from the first source that has it."""
        return self._homes[key].read(key)
