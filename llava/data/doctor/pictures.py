"""All pictures of the data: each file looked at once, in worker processes, and compared with the others.

After `samples`; `picture_checks` looks at one file. While the data is read, names go to the workers and facts
come back; kept are the path and the hashes of each picture.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from llava.data.doctor.perceptual_hash import (
    Thumbnail,
    is_same_picture,
    similar,
    similar_within,
    thumbnail,
)
from llava.data.doctor.picture_checks import (
    PICTURE_SUFFIXES,
    PictureFacts,
    PictureLimits,
    examine_bytes,
    examine_picture,
)
from llava.errors import FileError, ImageError
from llava.processing.images import load_image

_CHUNK: Final = 32
"""Pictures in one task: enough to make passing them around cheap."""
_AHEAD: Final = 4
"""Tasks per worker that wait."""
_MAX_SETTLED: Final = 50_000
"""Pairs that are compared as thumbnails; beyond, the hashes alone would have to be believed."""

Source = tuple[str, bytes | None]
"""Path or name, and the bytes where the data itself holds the picture."""


def examine_chunk(sources: Sequence[Source], limits: PictureLimits) -> list[PictureFacts]:
    """Look at some pictures; what a worker does."""
    return [
        examine_picture(name, limits) if data is None else examine_bytes(data, "", limits)
        for name, data in sources
    ]


class Pictures:
    """Numbers the distinct pictures and collects what is known about them."""

    def __init__(self, limits: PictureLimits, *, num_workers: int) -> None:
        """Take the limits; num_workers: processes, 0 for this one alone."""
        self.limits = limits
        self.paths: list[str] = []
        """By number."""
        self.facts: dict[int, PictureFacts] = {}
        """Of pictures with faults alone."""
        self.num_readable = 0
        self._numbers: dict[str, int] = {}
        self._waiting: list[Source] = []
        self._tasks: deque[tuple[int, Future[list[PictureFacts]]]] = deque()
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._looks = tuple(array("Q") for _ in range(3))
        self._has_looks = array("b")
        self._sent = 0

    def add(self, path: str, data: bytes | None = None) -> int:
        """Return the number of a picture; a new one is looked at, at once or soon."""
        number = self._numbers.get(path)
        if number is None:
            number = self._numbers[path] = len(self.paths)
            self.paths.append(path)
            self._waiting.append((path, data))
            if len(self._waiting) == _CHUNK:
                self._send()
        return number

    def finish(self) -> None:
        """Wait until every picture was looked at."""
        if self._waiting:
            self._send()
        self._receive(0)
        self._numbers.clear()
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _send(self) -> None:
        chunk, self._waiting = self._waiting, []
        first, self._sent = self._sent, self._sent + len(chunk)
        # One chunk is not worth starting processes for.
        if not self._num_workers or (self._pool is None and len(chunk) < _CHUNK):
            self._note(first, examine_chunk(chunk, self.limits))
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._num_workers, mp_context=multiprocessing.get_context("spawn")
            )
        self._tasks.append((first, self._pool.submit(examine_chunk, chunk, self.limits)))
        self._receive(self._num_workers * _AHEAD)

    def _receive(self, num_left: int) -> None:
        while len(self._tasks) > num_left:
            first, task = self._tasks.popleft()
            self._note(first, task.result())

    def _note(self, first: int, chunk: Iterable[PictureFacts]) -> None:
        for number, facts in enumerate(chunk, start=first):
            missing = number + 1 - len(self._has_looks)
            self._has_looks.extend([0] * missing)
            for column in self._looks:
                column.extend([0] * missing)
            if facts.faults:
                self.facts[number] = facts
            if facts.is_readable:
                self.num_readable += 1
                self._has_looks[number] = 1 if facts.is_flat else 2
                for column, value in zip(self._looks, (facts.digest, facts.edges, facts.layout), strict=True):
                    column[number] = value

    def digests(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Return numbers and digests of the bytes of all readable pictures."""
        numbers = np.flatnonzero(np.frombuffer(self._has_looks, dtype=np.int8) > 0)
        return numbers, np.frombuffer(self._looks[0], dtype=np.uint64)[numbers]

    def hashes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Return numbers and perceptual hashes, uint64[n, 2], of all pictures that have some."""
        numbers = np.flatnonzero(np.frombuffer(self._has_looks, dtype=np.int8) == 2)
        columns = [np.frombuffer(column, dtype=np.uint64)[numbers] for column in self._looks[1:]]
        return numbers, np.stack(columns, axis=1)

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Return (later, earlier) pictures that look the same and are different files."""
        numbers, hashes = self.hashes()
        digests = np.frombuffer(self._looks[0], dtype=np.uint64)
        pairs = [
            (int(numbers[two]), int(numbers[one]))
            for one, two in similar_within(hashes)
            if digests[numbers[one]] != digests[numbers[two]]
        ]
        return list(_first_each(self._settled(pairs, self.paths)))

    def overlaps(self, others: Pictures) -> list[tuple[int, int]]:
        """Return (picture, one of `others`) wherever they look the same."""
        numbers, hashes = self.hashes()
        other_numbers, other_hashes = others.hashes()
        if not len(hashes) or not len(other_hashes):
            return []
        pairs = [(int(numbers[one]), int(other_numbers[two])) for one, two in similar(hashes, other_hashes)]
        return list(_first_each(self._settled(pairs, others.paths)))

    def _settled(
        self, pairs: Sequence[tuple[int, int]], other_paths: Sequence[str]
    ) -> Iterator[tuple[int, int]]:
        """Keep the pairs whose thumbnails agree."""

        @functools.lru_cache(maxsize=4096)
        def small(path: str) -> Thumbnail | None:
            try:
                return thumbnail(load_image(path, on_notice=lambda _: None))
            except ImageError:  # inside a table, or gone by now
                return None

        for one, two in itertools.islice(sorted(pairs), _MAX_SETTLED):
            first, second = small(self.paths[one]), small(other_paths[two])
            if first is None or second is None or is_same_picture(first, second):
                yield one, two


def _first_each(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Keep one pair for each first member."""
    seen: set[int] = set()
    for one, two in pairs:
        if one not in seen:
            seen.add(one)
            yield one, two


def picture_files(folders: Sequence[str]) -> Iterator[str]:
    """Yield the picture files that are named or lie below a named folder, in order of their names.

    Raises FileError for what does not exist.
    """
    for name in folders:
        path = Path(name)
        if path.is_file():
            yield str(path)
        elif path.is_dir():
            for folder, subfolders, files in os.walk(path):
                subfolders.sort()
                for file in sorted(files):
                    if file.lower().endswith(PICTURE_SUFFIXES):
                        yield os.path.join(folder, file)
        else:
            raise FileError(f"{name!r} does not exist", remedy="Name pictures or folders of pictures.")
