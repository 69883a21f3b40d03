"""Imports when they are needed: public names found on first use, large modules without needless work."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that finds each name of `homes` in the module it names."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find


def import_large(name: str) -> ModuleType:
    """Import a module that brings torch and transformers with it, in two thirds of the time.

    The garbage collector would walk all that the import makes again and again, in every collection of a run
    and at its end; almost nothing of it is garbage, so that it is set aside for good (`gc.freeze`), once.
    """
    if name in sys.modules:
        return sys.modules[name]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        module = import_module(name)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    return module
