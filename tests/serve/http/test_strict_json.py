"""JSON with one meaning and bounded cost."""

from __future__ import annotations

import pytest

from llava.errors import RequestError, TooLargeError
from llava.serve.http.strict_json import parse_strictly


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, true, "x"]}', "[]", '"\\ud83d\\ude00"', "1e308"])
def test_what_is_json_is_read(text: str) -> None:
    import json

    assert parse_strictly(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "line 1, column 10"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"1e999", "beyond all bounds"),
        (b"-1e999", "beyond all bounds"),
        (b'{"a": 1, "a": 1}', "two equal keys"),
        (b'{"b": [{"a": 1, "\\u0061": 1}]}', "two equal keys"),
        (b'"\xff"', "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\uDC00": 1}', "surrogate"),
        (b"9" * 5000, "thousands of digits"),
    ],
)
def test_what_has_no_single_meaning_is_refused(data: bytes, part: str) -> None:
    with pytest.raises(RequestError, match=part):
        parse_strictly(data)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
@pytest.mark.parametrize("depth", [65, 100_000])
def test_deep_nesting_is_refused_at_any_depth(opening: bytes, depth: int) -> None:
    closing = b"".join(b"]" if char == ord("[") else b"}" for char in reversed(opening) if char in b"[{")
    with pytest.raises(TooLargeError, match="deeper than 64"):
        parse_strictly(opening * depth + b"1" + closing * depth)


def test_the_depth_is_that_of_the_deepest_place_and_not_the_number_of_lists() -> None:
    assert parse_strictly(b"[" * 64 + b"]" * 64, max_depth=64)
    assert len(parse_strictly(b"[" + b"[]," * 500 + b"[]]", max_depth=2)) == 501
    with pytest.raises(TooLargeError):
        parse_strictly(b"[" + b"[]," * 500 + b"[[]]]", max_depth=2)


def test_many_small_items_are_refused_before_they_are_made() -> None:
    with pytest.raises(TooLargeError, match="more than 1000 items"):
        parse_strictly(b"[" + b"[]," * 600 + b"[]]", max_items=1000)
