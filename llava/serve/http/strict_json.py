"""JSON as it is meant: one meaning, bounded depth and size, refused otherwise.

Python's reader takes NaN, lets the last of two equal keys win, and turns three bytes into an object of sixty;
what another program read differently, or what costs more than it looks, does not pass here.
"""

from __future__ import annotations

import json
import math
from typing import Any

from llava.errors import RequestError, TooLargeError

DEFAULT_MAX_DEPTH = 64
DEFAULT_MAX_ITEMS = 1_000_000


def parse_strictly(
    data: bytes, *, max_depth: int = DEFAULT_MAX_DEPTH, max_items: int = DEFAULT_MAX_ITEMS
) -> Any:
    """Parse JSON; raises RequestError, or TooLargeError for more than `max_depth` levels or `max_items`.

    Invalid UTF-8, lone surrogates, NaN, Infinity, numbers beyond a float, and equal keys are refused.
    max_items: of commas and opening brackets, those within strings too: they are counted before parsing.
    """
    num_opening = data.count(b"[") + data.count(b"{")
    if num_opening + data.count(b",") > max_items:
        raise TooLargeError(
            f"the body has more than {max_items} items", remedy="Send less at once, or less punctuation."
        )
    too_deep = TooLargeError(
        f"the body is nested deeper than {max_depth} levels", remedy="Send a flatter body."
    )
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8", remedy="Encode it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            remedy="Send a JSON object.",
        ) from None
    except RecursionError:
        raise too_deep from None
    except ValueError:  # more digits than Python converts
        raise RequestError("the body holds a number of thousands of digits") from None
    if num_opening > max_depth and _is_deeper(value, max_depth):
        raise too_deep
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise RequestError("the body has an object with two equal keys", remedy="Give each key once.")
    return result


def _refuse_constant(name: str) -> float:
    raise RequestError(f"the body holds {name}, which is not JSON", remedy="Give a finite number.")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise RequestError("the body holds a number beyond all bounds", remedy="Give a finite number.")
    return value


def _is_deeper(value: Any, max_depth: int) -> bool:
    """Say whether lists and objects are nested deeper than `max_depth`, without recursion."""
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(
            "the body holds half of a surrogate pair", remedy="Write the character whole."
        ) from None
