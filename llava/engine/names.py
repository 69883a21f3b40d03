"""The engines there are, by name; read by command lines, so nothing heavy is imported."""

from __future__ import annotations

from typing import Literal, get_args

EngineName = Literal["auto", "torch", "openvino", "llama.cpp", "remote"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
URL_SCHEMES = ("http://", "https://")
"""What the address of an endpoint begins with."""
