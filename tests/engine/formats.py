"""A schema whose answers are short, and the check of an answer that owes nothing to what held it."""

from __future__ import annotations

import json
from typing import Any

from llava.engine.request import JsonFormat

COLORS = ["red", "green", "blue", "yellow"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "color": {"enum": COLORS},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}
FORMAT = JsonFormat.of_schema(SCHEMA)
BAD_SCHEMAS: list[dict[str, Any]] = [
    {"type": "banana"},
    {"properties": 5},
    {"not": {"type": "string"}},
    {"type": "array", "uniqueItems": True},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "format": "no such format"},
    {"enum": []},
    {"$ref": "#/$defs/missing"},
    {"$ref": "file:///etc/hostname"},
    {"$defs": {"endless": {"$ref": "#/$defs/endless"}}, "$ref": "#/$defs/endless"},
    {"not": {}, "x-guidance": {"lenient": True}},
]
"""None of them can be held, whatever is asked."""


def assert_fits(text: str) -> None:
    """Check an answer against SCHEMA, by hand."""
    value = json.loads(text)
    assert list(value) == ["color", "count"]
    assert value["color"] in COLORS
    assert type(value["count"]) is int
    assert 0 <= value["count"] <= 9
