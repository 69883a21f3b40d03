"""A data file that may be broken -> its samples with their lines, and what breaks the JSON.

First step of the doctor. `json` stops at the first fault and knows no lines; here samples are found by their
brackets, each is parsed alone, and reading goes on at the next sample behind a broken one. The file is
mapped, not read: memory is that of one sample.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
# Structure, with texts skipped as one piece. A text ends at its line: a forgotten quote costs no more.
_TOKENS: Final = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[{}\[\]]', re.DOTALL)
_BLANK: Final = re.compile(rb"[ \t\r\n]*")
_SEPARATOR: Final = re.compile(rb"[ \t\r\n,]*")
_SCALAR: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[^,\]\[{}"]+|.', re.DOTALL)
# How the next sample begins, for going on behind one whose brackets do not match.
_NEXT_SAMPLE: Final = re.compile(
    rb"(?:[}\]][ \t\r\n]*,?|,)[ \t\r\n]*"
    rb'(?=\{[ \t\r\n]*"(?:id|image|images|conversations|messages|source|model)")'
)
_TRAILING_COMMA: Final = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)

Fault = Callable[[str, int, str], None]
"""Told (code, line, detail)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sample as the file has it."""

    line: int
    """On which it begins, from 1."""
    value: object
    """As parsed."""


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """Yield the content of a file without reading it into memory."""
    with path.open("rb") as stream:
        if not path.stat().st_size:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def read_items(path: Path, fault: Fault) -> Iterator[Item]:
    """Yield the samples of a JSON list or JSONL file in order, and tell `fault` of whatever is no JSON."""
    with mapped(path) as content:
        start = _first(content, fault)
        if start == len(content):
            fault("file-empty", 0, f"{path.name} holds no samples")
        elif content[start : start + 1] == b"[":
            yield from _List(content, fault).items(start)
        elif _has_lines(content, start) and (whole := whole_object(path)) is not None:
            fault("not-a-list", 1, f"the file is one object with the keys {', '.join(map(str, whole))[:120]}")
            if "conversations" in whole or "messages" in whole:
                yield Item(_line_at(content, start), whole)
        else:
            yield from _lines(content, fault)


def _has_lines(content: mmap.mmap | bytes, start: int) -> bool:
    """Tell whether there is more than one line: a single one is JSONL of a single sample."""
    end = content.find(b"\n", start)
    return end >= 0 and _end(_BLANK, content, end) < len(content)


def whole_object(path: Path) -> dict[str, object] | None:
    """Return the object that the file is, over several lines; None when it is anything else."""
    with mapped(path) as content:
        start = _end(_BLANK, content, 3 if content[:3] == _BOM else 0)
        if content[start : start + 1] != b"{":
            return None
        end = content.find(b"\n", start)
        if end >= 0 and parse(content[start:end]) is not None and _end(_BLANK, content, end) < len(content):
            return None
        value = parse(content[start:])
    return value if isinstance(value, dict) else None


def parse(data: bytes) -> object | None:
    """Return what some JSON says, or None."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value


def _first(content: mmap.mmap | bytes, fault: Fault) -> int:
    """Return where the content begins; tells of a byte order mark and of Windows line ends."""
    start = 0
    if content[:3] == _BOM:
        fault("file-bom", 1, "the file begins with a byte order mark, which JSON forbids")
        start = 3
    crlf = content.find(b"\r\n")
    if crlf >= 0:
        fault("file-crlf", _line_at(content, crlf), "lines end with \\r\\n")
    return _end(_BLANK, content, start)


def _end(pattern: re.Pattern[bytes], content: mmap.mmap | bytes, start: int) -> int:
    match = pattern.match(content, start)
    return match.end() if match else start


def _line_at(content: mmap.mmap | bytes, place: int) -> int:
    return content[:place].count(b"\n") + 1


def _lines(content: mmap.mmap | bytes, fault: Fault) -> Iterator[Item]:
    """JSONL: one object a line."""
    start, line = (3 if content[:3] == _BOM else 0), 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line += 1
        text = content[start:end].strip()
        start = end + 1
        if not text:
            continue
        if text.endswith(b",") and parse(text) is None:
            fault("json-trailing-comma", line, "a comma follows the object; JSONL has none")
            text = text[:-1]
        found, value = _parsed(text, line, fault)
        if found:
            yield Item(line, value)


class _List:
    """Finds the samples of a JSON list by their brackets."""

    def __init__(self, content: mmap.mmap | bytes, fault: Fault) -> None:
        self.content = content
        self.fault = fault
        self._counted = (0, 1)
        """A place, and its line."""
        self._has_passed_comma = False
        """Whether the end of a broken sample was found together with its comma."""

    def items(self, start: int) -> Iterator[Item]:
        """Yield the samples of the list that begins at `start`."""
        place, is_first = start + 1, True
        while True:
            place = self._separator(place, is_first=is_first)
            is_first = False
            if place >= len(self.content):
                self.fault("json-unclosed", self.line(len(self.content)), "the list has no end")
                return
            if self.content[place : place + 1] == b"]":
                self._rest(place + 1)
                return
            end = self._item_end(place)
            line = self.line(place)
            found, value = _parsed(self.content[place:end], line, self.fault)
            if found:
                yield Item(line, value)
            place = end

    def line(self, place: int) -> int:
        """Return the line of a place; places are asked for in order."""
        known, line = self._counted
        if place < known:
            known, line = 0, 1
        line += self.content[known:place].count(b"\n")
        self._counted = (place, line)
        return line

    def _separator(self, place: int, *, is_first: bool) -> int:
        """Pass the comma between two samples; tells when it is not one."""
        end = _end(_SEPARATOR, self.content, place)
        num_commas = self.content[place:end].count(b",")
        is_last = end >= len(self.content) or self.content[end : end + 1] == b"]"
        if num_commas > (0 if is_first or is_last else 1):
            self.fault("json-trailing-comma", self.line(place), "a comma that nothing follows")
        elif not (num_commas or is_first or is_last or self._has_passed_comma):
            self.fault("json-comma-missing", self.line(end), "no comma before this sample")
        self._has_passed_comma = False
        return end

    def _item_end(self, start: int) -> int:
        """Return where the value that begins at `start` ends."""
        if self.content[start : start + 1] not in (b"{", b"["):
            return max(_end(_SCALAR, self.content, start), start + 1)
        end, is_closed = self._bracket_end(start)
        data = self.content[start:end]
        following = _NEXT_SAMPLE.search(data, 1)
        # Inside a sample that is whole, the pattern is a nested object, and no sample.
        if following and (not is_closed or not _loads(data)):
            self._has_passed_comma = True
            return start + following.end()
        return end

    def _bracket_end(self, start: int) -> tuple[int, bool]:
        depth = 0
        for token in _TOKENS.finditer(self.content, start):
            if token[0] in (b"{", b"["):
                depth += 1
            elif token[0] in (b"}", b"]"):
                depth -= 1
                if not depth:
                    return token.end(), True
        return len(self.content), False

    def _rest(self, place: int) -> None:
        end = _end(_BLANK, self.content, place)
        if end < len(self.content):
            shown = self.content[end : end + 40].decode("utf-8", "replace")
            self.fault("json-extra", self.line(end), f"after the list comes {shown!r}")


def _loads(data: bytes) -> bool:
    try:
        json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(data: bytes, line: int, fault: Fault) -> tuple[bool, object]:
    """Parse one sample, past faults that leave no doubt about what was meant; (False, None) otherwise."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].count(b"\n")
        fault("file-encoding", line + before, f"byte 0x{data[error.start]:02x} is no UTF-8")
        text = data.decode("utf-8", "replace")
    twice: list[str] = []

    def fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return made

    value, broken = _tried(text, fields)
    if broken is not None:
        code, value = _mended(text, fields)
        where = line + broken.lineno - 1
        if code is None:
            fault("json-syntax", where, f"{broken.msg} (column {broken.colno})")
            return False, None
        fault(code, where, f"{broken.msg} (column {broken.colno})")
    for name in dict.fromkeys(twice):
        fault("json-duplicate-key", line, f"key {name!r} is given twice")
    return True, value


_Fields = Callable[[list[tuple[str, object]]], dict[str, object]]


def _tried(text: str, fields: _Fields, *, strict: bool = True) -> tuple[object, json.JSONDecodeError | None]:
    try:
        return json.loads(text, object_pairs_hook=fields, strict=strict), None
    except json.JSONDecodeError as error:
        return None, error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return None, json.JSONDecodeError(str(error).split("\n")[0][:100], text, 0)


def _mended(text: str, fields: _Fields) -> tuple[str | None, object]:
    """Parse past raw control characters and trailing commas; (None, None) when that is not enough."""
    value, fault = _tried(text, fields, strict=False)
    if fault is None:
        return "json-control-character", value
    without = _TRAILING_COMMA.sub(lambda match: match[0] if match[0][0] == '"' else "", text)
    value, fault = _tried(without, fields, strict=False)
    return (None, None) if fault is not None else ("json-trailing-comma", value)
