"""What gradio leaves behind must not become the failure of some later test."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _sweep() -> Iterator[None]:
    """Collect sockets and loops that gradio leaves to the garbage collector, where their warnings count less.

    Set up first and so ended last: after the servers of a module.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
