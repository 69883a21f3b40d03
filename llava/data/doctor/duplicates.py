"""Samples that are there twice, and questions that have two answers.

After `samples`. A sample is remembered as two 64-bit digests: 16 bytes each, whatever its text.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from llava.data.doctor.samples import Sample


class Duplicates:
    """Collects digests of samples in order."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._wholes = array("Q")
        self._questions = array("Q")

    def add(self, number: int, sample: Sample, pictures: Sequence[str]) -> None:
        """Remember a sample; pictures: what is the same for the same picture."""
        questions = [turn.text or "" for turn in sample.turns if turn.role == "human"]
        everything = [f"{turn.role}\0{turn.text}" for turn in sample.turns]
        self._numbers.append(number)
        self._wholes.append(_digest([sample.system, *pictures, "", *everything]))
        self._questions.append(_digest([sample.system, *pictures, "", *questions]))

    def repeated(self) -> Iterator[tuple[int, int]]:
        """Yield (later sample, first sample) of equal samples."""
        wholes = np.frombuffer(self._wholes, dtype=np.uint64)
        for rows in _groups(wholes):
            first, *others = (self._numbers[row] for row in rows)
            for other in others:
                yield other, first

    def conflicting(self) -> Iterator[tuple[int, int]]:
        """Yield (later sample, first sample) of equal questions about equal pictures with other answers."""
        wholes = np.frombuffer(self._wholes, dtype=np.uint64)
        for rows in _groups(np.frombuffer(self._questions, dtype=np.uint64)):
            seen = {int(wholes[rows[0]])}
            for row in rows[1:]:
                if int(wholes[row]) not in seen:
                    seen.add(int(wholes[row]))
                    yield self._numbers[row], self._numbers[rows[0]]


def equal_pictures(digests: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Iterator[tuple[int, int]]:
    """Yield (later row, first row) of equal digests."""
    for rows in _groups(digests):
        for row in rows[1:]:
            yield row, rows[0]


def _groups(values: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Iterator[list[int]]:
    """Yield the rows of each value that occurs more than once, rows in order."""
    if len(values) < 2:
        return
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True):
        if stop - start > 1:
            yield order[start:stop].tolist()


def _digest(parts: Sequence[str]) -> int:
    data = "\1".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
