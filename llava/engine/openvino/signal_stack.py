"""Keep the stack that signal handlers run on, which OpenVINO leaves pointing nowhere.

Compiling a graph, and freeing one, gives the calling thread an alternative signal stack that is unmapped
later (seen on Linux with openvino 2026.4.1 by reading the thread's sigaltstack). Python's handlers run on
that stack where there is one, so the next SIGTERM or Ctrl-C would be a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread its signal stack back at the end; does nothing on other systems than Linux."""
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
