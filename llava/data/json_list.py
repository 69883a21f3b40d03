"""Where the samples of a big JSON list begin, found without parsing it and without holding it in memory.

Place in the flow: below `index`. Quotes and brackets are found by whole-array comparisons over chunks of the
file; only the few bytes between two samples are looked at one by one. What is inside a sample is not checked
here: a broken one is reported when it is read. Damage that hides where samples end is a FileError that names
the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from llava.errors import FileError

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
Positions = np.ndarray[tuple[int], np.dtype[np.int64]]

_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
# "[" is 0x5B and "{" is 0x7B, "]" 0x5D and "}" 0x7D: without the bit 0x20 each pair is one value.
_WITHOUT_CASE: Final = np.uint8(0xDF)
_OPEN: Final = 0x5B
_CLOSE: Final = 0x5D
_EXPLAINED_BYTES: Final = 64 << 20
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def scan_list(path: Path, chunks: Iterator[bytes]) -> Positions:
    """Return where each sample begins, and as the last number where the list is closed: int64[N + 1].

    chunks: the file from its first byte on, in pieces of any size.
    Raises FileError, naming the line, when the file as a whole is not one JSON list.
    """
    scan = _Scan(path)
    carried = b""
    for chunk in chunks:
        carried += chunk
        # A run of backslashes must be whole to say whether the quote behind it is escaped.
        if not carried.endswith(b"\\"):
            scan.take(carried)
            carried = b""
    scan.take(carried)
    return scan.finish()


class _Scan:
    """What is known between two chunks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.depth = 0
        self.is_in_string = False
        self.end = -1
        self.starts: list[Positions] = []
        self.num_items = 0
        self.gap = b""
        self.gap_start = 0
        self.plain_gaps: set[bytes] = set()

    def take(self, chunk: bytes) -> None:
        """Find the samples that begin in a chunk."""
        if self.end >= 0:
            self._check_tail(chunk)
            return
        places, levels, is_open = self._brackets(np.frombuffer(chunk, dtype=np.uint8))
        closing = np.flatnonzero(levels <= 0)
        if closing.size:
            # What follows the list is no part of it.
            end = int(closing[0]) + 1
            places, levels, is_open = places[:end], levels[:end], is_open[:end]
        marks = np.flatnonzero((is_open & (levels <= 2)) | (~is_open & (levels <= 1)))
        cursor = 0 if self.depth == 1 else -1
        begins: list[int] = []
        for place, level, opens in zip(
            places[marks].tolist(), levels[marks].tolist(), is_open[marks].tolist(), strict=True
        ):
            if opens and level == 1:
                self._check_opening(chunk[:place])
                cursor = place + 1
                self.gap_start = self.position + cursor
            elif opens:
                begins += self._scalars(self.gap + chunk[cursor:place], bool(begins))
                begins.append(self.position + place)
                self.gap = b""
                cursor = -1
            elif level == 1:
                cursor = place + 1
                self.gap_start = self.position + cursor
            else:
                begins += self._scalars(self.gap + chunk[cursor:place], bool(begins), is_last=True)
                self._close(chunk, place)
        self._keep(begins)
        if self.end < 0 and cursor >= 0:
            self.gap += chunk[cursor:]
        self.depth = int(levels[-1]) if levels.size else self.depth
        self.position += len(chunk)

    def finish(self) -> Positions:
        """Return the offsets; raises FileError when the list was never closed."""
        if self.end < 0:
            self._explain()
        return np.concatenate([*self.starts, np.array([self.end], dtype=np.int64)])

    def _keep(self, begins: list[int]) -> None:
        self.starts.append(np.array(begins, dtype=np.int64))
        self.num_items += len(begins)

    def _brackets(
        self, data: Bytes
    ) -> tuple[Positions, Positions, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        """Return places of brackets outside strings, the depth behind each, and whether it opens."""
        quotes = np.flatnonzero(data == _QUOTE)
        before = data[quotes - 1] == _BACKSLASH
        before &= quotes > 0
        escaped = np.flatnonzero(before)
        if escaped.size:
            lengths = _run_lengths(data, quotes[escaped])
            quotes = np.delete(quotes, escaped[lengths % 2 == 1])
        folded = data & _WITHOUT_CASE
        places = np.flatnonzero((folded == _OPEN) | (folded == _CLOSE))
        quotes_before = np.searchsorted(quotes, places) + int(self.is_in_string)
        places = places[quotes_before % 2 == 0]
        is_open = folded[places] == _OPEN
        levels = self.depth + np.cumsum(np.where(is_open, 1, -1))
        self.is_in_string ^= bool(quotes.size % 2)
        return places, levels, is_open

    def _check_opening(self, text: bytes) -> None:
        if text.removeprefix(b"\xef\xbb\xbf").strip() and self.num_items == 0:
            raise FileError(f"{self.path} does not begin with a JSON list")

    def _close(self, chunk: bytes, place: int) -> None:
        """Note the end of the list, which must be a bracket with nothing behind it."""
        if chunk[place : place + 1] != b"]":
            self.end = -1
            self._explain()
        self.end = self.position + place
        self._check_tail(chunk[place + 1 :])

    def _check_tail(self, text: bytes) -> None:
        if text.strip():
            line = line_of(self.path, self.end)
            raise FileError(
                f"{self.path} line {line}: text follows the end of the list",
                remedy="Keep one JSON list in the file.",
            )

    def _scalars(self, gap: bytes, has_new: bool, *, is_last: bool = False) -> list[int]:
        """Return where bare values (texts, numbers) begin in the bytes between two samples."""
        is_first = self.num_items == 0 and not has_new
        if not is_first and not is_last:
            if gap in self.plain_gaps:
                return []
            if gap.strip() == b",":
                self.plain_gaps.add(gap)
                return []
        elif not gap.strip():
            return []
        return self._bare_values(gap, is_first=is_first, is_last=is_last)

    def _bare_values(self, gap: bytes, *, is_first: bool, is_last: bool) -> list[int]:
        """Read a gap value by value, with a comma between any two."""
        text = gap.decode("utf-8", errors="replace")
        decoder = json.JSONDecoder()
        found: list[int] = []
        place, needs_comma = _skip(text, 0), not is_first
        while place < len(text):
            if needs_comma:
                if text[place] != ",":
                    self._fail(text, place, "a comma is missing between two samples")
                place, needs_comma = _skip(text, place + 1), False
                continue
            try:
                _, end = decoder.raw_decode(text, place)
            except json.JSONDecodeError:
                self._fail(text, place, f"{text[place : place + 20]!r} is not JSON")
            found.append(self.gap_start + len(text[:place].encode()))
            place, needs_comma = _skip(text, end), True
        if is_last and not needs_comma and not (is_first and not found):
            self._fail(text, len(text) - 1, "a comma stands before the end of the list")
        if not is_last and needs_comma and not (is_first and not found):
            self._fail(text, len(text) - 1, "a comma is missing between two samples")
        return found

    def _fail(self, text: str, place: int, problem: str) -> NoReturn:
        line = line_of(self.path, self.gap_start + len(text[: max(place, 0)].encode()))
        raise FileError(f"{self.path} line {line} is not JSON: {problem}", remedy="Mend the file there.")

    def _explain(self) -> NoReturn:
        """Find the first sample that is not JSON: quotes or brackets that do not match are in it."""
        starts = np.concatenate([*self.starts, np.array([self.path.stat().st_size], dtype=np.int64)])
        with self.path.open("rb") as stream:
            for number, (begin, end) in enumerate(
                zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True), start=1
            ):
                stream.seek(begin)
                text = stream.read(min(end - begin, _EXPLAINED_BYTES)).decode("utf-8", errors="replace")
                try:
                    json.JSONDecoder().raw_decode(text)
                except json.JSONDecodeError as error:
                    line = line_of(self.path, begin) + error.lineno - 1
                    raise FileError(
                        f"{self.path} line {line} is not JSON (item {number}): {error.msg}",
                        remedy="Mend the file there.",
                    ) from None
        raise FileError(
            f"{self.path} is cut off: the list of {len(starts) - 1} sample(s) is never closed",
            remedy="Get the file again.",
        )


def _run_lengths(data: Bytes, quotes: Positions) -> Positions:
    """Return how many backslashes stand in a row before each quote."""
    lengths = np.zeros(quotes.size, dtype=np.int64)
    running = np.arange(quotes.size)
    while running.size:
        places = quotes[running] - 1 - lengths[running]
        is_more = (places >= 0) & (data[places] == _BACKSLASH)
        running = running[is_more]
        lengths[running] += 1
    return lengths


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # the pattern matches nothing, too
    return found.end()


def line_of(path: Path, offset: int) -> int:
    """Return the line, from 1, that a byte of a file is in."""
    line = 1
    with path.open("rb") as stream:
        read: Callable[[int], bytes] = stream.read
        while offset > 0 and (chunk := read(min(offset, 1 << 20))):
            line += chunk.count(b"\n")
            offset -= len(chunk)
    return line
