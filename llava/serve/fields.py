"""Typed reading of JSON objects that came over a network: every field is checked before anything uses it.

Below `protocol`, which says what the fields mean. Unknown fields are left alone, as the original leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llava.errors import RequestError
from llava.serve.http.strict_json import parse_strictly


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object; raises RequestError for anything else, TooLargeError for nesting without end."""
    return as_object(parse_strictly(data))


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON value that is an object; raises RequestError for any other."""
    if not isinstance(value, dict):
        raise RequestError(f"a JSON {_kind(value)} where an object was expected", remedy="Send an object.")
    return value


def text(
    fields: Mapping[str, Any], name: str, *, default: str | None = None, max_length: int = 1 << 12
) -> str:
    """Return a text field; without a default it is required."""
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    if len(value) > max_length:
        raise RequestError(f"{name} has {len(value)} characters", remedy=f"At most {max_length} are taken.")
    return value


def number(
    fields: Mapping[str, Any],
    name: str,
    *,
    default: float | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> float:
    """Return a finite number; a text that holds one is taken too, as the original's float() did."""
    value = fields.get(name, default)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _wrong(name, value, "a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    try:
        found = float(value)
    except OverflowError:
        raise _wrong(name, value, "a finite number") from None
    if not math.isfinite(found):
        raise _wrong(name, value, "a finite number")
    if not low <= found <= high:
        raise RequestError(f"{name} is {found:g}", remedy=f"It must be {low:g} to {high:g}.")
    return found


def whole(
    fields: Mapping[str, Any], name: str, *, default: int | None = None, low: int = 0, high: int = 1 << 53
) -> int:
    """Return a whole number."""
    found = number(fields, name, default=default, low=low, high=high)
    if found != int(found):
        raise _wrong(name, found, "a whole number")
    return int(found)


def flag(fields: Mapping[str, Any], name: str, *, default: bool | None = None) -> bool:
    """Return true or false."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def texts(
    fields: Mapping[str, Any], name: str, *, max_count: int, max_length: int, is_lone_ok: bool = False
) -> tuple[str, ...]:
    """Return a list of texts; missing or null is none. `is_lone_ok` takes a single text for a list of one."""
    value = fields.get(name)
    if value is None:
        return ()
    if is_lone_ok and isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, value, "a list of texts")
    if len(value) > max_count:
        raise RequestError(f"{name} has {len(value)} entries", remedy=f"At most {max_count} are taken.")
    if longest := next((item for item in value if len(item) > max_length), None):
        raise RequestError(
            f"an entry of {name} has {len(longest)} characters", remedy=f"At most {max_length} are taken."
        )
    return tuple(value)


def _wrong(name: str, value: object, wanted: str) -> RequestError:
    if value is None:
        return RequestError(f"{name} is missing", remedy=f"Give {wanted}.")
    # The value itself may be megabytes long, or a picture.
    shown = repr(value) if isinstance(value, int | float) and abs(value) < 1e18 else f"a {_kind(value)}"
    return RequestError(f"{name} is {shown}", remedy=f"Give {wanted}.")


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null")
