"""The whole examination: data in, `Diagnosis` out.

One pass over the data. Samples are checked as they are read; pictures are looked at by worker processes
meanwhile; what takes knowledge of everything (doubles, pictures that look alike) comes at the end.
Memory grows by about 400 bytes a sample (id, lengths, digests), and by the path and hashes of each picture.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llava.data.doctor.diagnosis import Diagnosis, Preview, SourceRow
from llava.data.doctor.duplicates import Duplicates, equal_pictures
from llava.data.doctor.findings import KINDS, Finding, Findings
from llava.data.doctor.picture_checks import PictureLimits, locate
from llava.data.doctor.pictures import Pictures, picture_files
from llava.data.doctor.reading import Item
from llava.data.doctor.samples import Sample, check
from llava.data.doctor.sources import DataFile, data_files
from llava.data.doctor.tokens import TokenChecker
from llava.data.records import Record, record_of
from llava.errors import DataError, LlavaError

_OF_SAMPLE: Final = {"json-control-character", "json-duplicate-key", "file-encoding"}
"""Faults of the file that the sample which is read next has survived."""


@dataclass(frozen=True)
class ExamineOptions:
    """How the data is examined."""

    image_folder: str | None = None
    """Where relative picture names begin; None: the data's own folder."""
    against: tuple[str, ...] = ()
    """Pictures of benchmarks, or folders of them, that the data must not hold."""
    num_workers: int = 1
    """Processes that look at pictures; 0: this one."""
    max_samples: int | None = None
    """Stop after so many."""
    keep: int = 1000
    """Findings of each kind that are kept; the counts are exact."""
    num_previews: int = 3
    limits: PictureLimits = field(default_factory=PictureLimits)


def examine(
    data: str,
    options: ExamineOptions,
    *,
    tokens: TokenChecker | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Examine a data file, several with commas between them, or the meta file of a mixture.

    tokens: None leaves the token part out. progress: told the number of samples and of pictures now and then.
    Raises FileError when something the user named does not exist.
    """
    start = time.perf_counter()
    examination = _Examination(data, options, tokens, progress)
    try:
        examination.read()
        examination.compare()
    finally:
        examination.pictures.close()
    diagnosis = examination.diagnosis
    diagnosis.seconds = time.perf_counter() - start
    return diagnosis


class _Examination:
    """The state of one examination."""

    def __init__(
        self,
        data: str,
        options: ExamineOptions,
        tokens: TokenChecker | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.options = options
        self.tokens = tokens
        self.progress = progress
        self.diagnosis = Diagnosis(data, findings=Findings(keep=options.keep))
        self.diagnosis.files = data_files(data, options.image_folder, self._mixture_fault)
        if tokens is not None:
            self.diagnosis.forecasts = tokens.forecasts
            self.diagnosis.max_length = tokens.max_length
            self.diagnosis.num_image_tokens = tokens.num_image_tokens
            self.diagnosis.tokenizer = tokens.origin
            self.diagnosis.template = tokens.template.name
        self.pictures = Pictures(options.limits, num_workers=options.num_workers)
        self.duplicates = Duplicates()
        self.first_with_id: dict[str, int] = {}
        self.ids: list[str] = []
        self.bad: set[int] = set()
        """Samples with errors."""
        self.lines = array("q")
        self.file_of = array("i")
        self.uses = (array("q"), array("q"))
        """Which sample uses which picture."""

    def _mixture_fault(self, code: str, entry: str, detail: str) -> None:
        self.diagnosis.findings.add(Finding(code, entry or self.diagnosis.data, 0, -1, "", detail))

    def read(self) -> None:
        """Check every sample by itself."""
        for number, file in enumerate(self.diagnosis.files):
            row = SourceRow(file.name, str(file.path), file.repeat)
            self.diagnosis.rows.append(row)
            seen_keys: set[str] = set()
            for item in file.items(self._file_fault(file)):
                if self.options.max_samples is not None and len(self.ids) >= self.options.max_samples:
                    self.diagnosis.is_partial = True
                    return
                self._sample(item, file, number, row, seen_keys)
                if self.progress and len(self.ids) % 500 == 0:
                    self.progress(len(self.ids), len(self.pictures.paths))

    def _file_fault(self, file: DataFile) -> Callable[[str, int, str], None]:
        def fault(code: str, line: int, detail: str) -> None:
            number = len(self.ids) if code in _OF_SAMPLE else -1
            self.diagnosis.findings.add(Finding(code, file.name, line, number, "", detail))

        return fault

    def _sample(
        self, item: Item, file: DataFile, file_number: int, row: SourceRow, seen_keys: set[str]
    ) -> None:
        sample = check(item.value)
        number = len(self.ids)
        self.ids.append(sample.id)
        self.lines.append(item.line)
        self.file_of.append(file_number)
        first = self.first_with_id.setdefault(sample.id, number) if sample.id else number
        if first != number:
            sample.fault("id-duplicate", f"id {sample.id!r} is that of {self._place(first)}, too")
        for key in sample.unknown_keys:
            if key not in seen_keys:
                seen_keys.add(key)
                sample.fault("key-unknown", f"key {key!r}, here for the first time")
        names = self._pictures_of(sample, file, number)
        record = self._record(sample, item, file, number)
        if record is not None:
            self.duplicates.add(number, sample, names)
            self._tokens(record, sample, row, names)
        for code, detail in sample.faults:
            self._add(code, number, detail)
        row.num_samples += 1
        row.num_turns += len(sample.turns)
        row.num_pictures += len(sample.images)
        row.num_with_pictures += bool(sample.images)
        row.num_sound += sample.is_sound

    def _pictures_of(self, sample: Sample, file: DataFile, number: int) -> list[str]:
        """Send the sample's pictures to be looked at; returns what names each of them."""
        names = []
        faults: list[tuple[str, str]]
        for place, image in enumerate(sample.images):
            if isinstance(image, bytes):
                path, data, faults = f"{file.name} row {self.lines[-1]} picture {place + 1}", image, []
            else:
                path, faults = locate(image, file.folder, is_limit=file.is_limit)
                data = None
            for code, detail in faults:
                sample.fault(code, detail)
                if KINDS[code].severity == "error":
                    self.diagnosis.dropped.setdefault(number, code)
            names.append(path if data is None else f"bytes {hash(data)}")
            if path:
                self.uses[0].append(number)
                self.uses[1].append(self.pictures.add(path, data))
        return names

    def _record(self, sample: Sample, item: Item, file: DataFile, number: int) -> Record | None:
        """Read the sample as the trainer does; None when there are errors. The trainer has the last word."""
        if not sample.is_sound:
            return None
        where = f"{file.name}:{item.line}"
        try:
            return record_of(
                item.value, source=file.name, where=where, number=number + 1, folder=file.pictures
            )
        except DataError as error:
            sample.fault("record-refused", error.cause.removeprefix(f"{where}: "))
            self.diagnosis.dropped.setdefault(number, "record-refused")
            return None

    def _tokens(self, record: Record, sample: Sample, row: SourceRow, names: list[str]) -> None:
        if self.tokens is None:
            return
        length, faults = self.tokens.examine(record)
        sample.faults += faults
        for code, _ in faults:
            if KINDS[code].severity == "error":
                self.diagnosis.dropped.setdefault(len(self.ids) - 1, code)
        if length is None:
            return
        self.diagnosis.lengths.add(length)
        row.num_tokens += length.total
        row.num_targets += length.targets
        row.num_encoded += 1
        if len(self.diagnosis.previews) < self.options.num_previews and not faults:
            try:
                pieces = self.tokens.preview(record)
            except LlavaError:  # it was encoded a moment ago
                return
            self.diagnosis.previews.append(Preview(record.where, record.id, pieces, names))

    def _place(self, number: int) -> str:
        file = self.diagnosis.files[self.file_of[number]]
        return f"{file.name}:{self.lines[number]}"

    def _add(self, code: str, number: int, detail: str, picture: str = "", other: str = "") -> None:
        file = self.diagnosis.files[self.file_of[number]]
        if KINDS[code].severity == "error":
            self.bad.add(number)
        self.diagnosis.findings.add(
            Finding(code, file.name, self.lines[number], number, self.ids[number], detail, picture, other)
        )

    def compare(self) -> None:
        """Note what takes knowledge of all samples and all pictures."""
        self.pictures.finish()
        self.diagnosis.num_pictures = len(self.pictures.paths)
        self.diagnosis.num_readable = self.pictures.num_readable
        self._picture_findings()
        for number, first in self.duplicates.repeated():
            self._add("sample-duplicate", number, f"the same as {self._place(first)}")
            self.diagnosis.dropped.setdefault(number, "sample-duplicate")
        for number, first in self.duplicates.conflicting():
            self._add("answer-conflict", number, f"answered otherwise at {self._place(first)}")
        self._similar_pictures(self._first_users())
        if self.options.against:
            self._benchmark()
        self.diagnosis.num_with_errors = len(self.bad)

    def _first_users(self) -> dict[int, int]:
        """Return for each picture the first sample that uses it."""
        users: dict[int, int] = {}
        for sample, picture in zip(*self.uses, strict=True):
            users.setdefault(picture, sample)
        return users

    def _picture_findings(self) -> None:
        """Note errors for every sample that uses the picture, anything else once."""
        noted: set[int] = set()
        for number, picture in zip(*self.uses, strict=True):
            facts = self.pictures.facts.get(picture)
            if facts is None:
                continue
            path = self.pictures.paths[picture]
            if facts.real_path:
                self.diagnosis.spellings[path] = facts.real_path
            for code, detail in facts.faults:
                is_error = KINDS[code].severity == "error"
                if is_error and not facts.real_path:
                    self.diagnosis.dropped.setdefault(number, code)
                if is_error or picture not in noted:
                    self._add(code, number, f"{_shown(path)}: {detail}", path)
            noted.add(picture)

    def _similar_pictures(self, users: dict[int, int]) -> None:
        numbers, digests = self.pictures.digests()
        paths = self.pictures.paths
        for later, first in equal_pictures(digests):
            one, two = int(numbers[later]), int(numbers[first])
            detail = f"{_shown(paths[one])} is byte for byte {_shown(paths[two])}"
            self._add("picture-duplicate", users[one], detail, paths[one], paths[two])
        for one, two in self.pictures.near_duplicates():
            detail = f"{_shown(paths[one])} looks like {_shown(paths[two])}"
            self._add("picture-near-duplicate", users[one], detail, paths[one], paths[two])

    def _benchmark(self) -> None:
        """Note every sample that uses a picture which looks like one of a benchmark."""
        benchmark = Pictures(self.options.limits, num_workers=self.options.num_workers)
        try:
            for path in picture_files(self.options.against):
                benchmark.add(path)
            benchmark.finish()
        finally:
            benchmark.close()
        self.diagnosis.num_benchmark = len(benchmark.paths)
        found = dict(self.pictures.overlaps(benchmark))
        for number, picture in zip(*self.uses, strict=True):
            if picture in found:
                path, other = self.pictures.paths[picture], benchmark.paths[found[picture]]
                detail = f"{_shown(path)} looks like {_shown(other)}"
                self._add("benchmark-overlap", number, detail, path, other)
                self.diagnosis.dropped.setdefault(number, "benchmark-overlap")


def _shown(path: str) -> str:
    """Return the last parts of a path; of a data URI its beginning."""
    if path[:5].lower() == "data:":
        return f"{path[:32]}..."
    parts = path.split("/")
    return "/".join(parts[-2:])
