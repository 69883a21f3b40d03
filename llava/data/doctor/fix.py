"""Write a copy of the data without its errors, and a list of what was done.

After `examine`, which knows what a sample by itself does not show: pictures that are missing, doubles,
samples that are too long. The data is read a second time, one sample at a time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from llava.data.doctor.diagnosis import Diagnosis
from llava.data.doctor.findings import KINDS
from llava.data.doctor.mending import Change, mend
from llava.data.doctor.picture_checks import is_encodable, locate
from llava.data.doctor.sources import DataFile, is_mixture
from llava.data.doctor.tokens import TokenChecker
from llava.data.records import record_of
from llava.errors import DataError, UsageError
from llava.files import atomic_path, read_text, write_json


@dataclass
class Fixed:
    """What `write_fixed` did."""

    path: Path
    """The cleaned copy: data, or the meta file of a mixture."""
    changes: Path
    """JSONL, one change a line."""
    num_kept: int = 0
    num_changed: int = 0
    """Of those kept."""
    num_dropped: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """How often what was settled."""


def check_target(diagnosis_files: list[DataFile], data: str, target: Path) -> None:
    """Refuse a target that cannot be written; raises UsageError. Cheap: for the start of the command."""
    if target.suffix.lower() not in (".json", ".jsonl"):
        raise UsageError(f"--fix {target}: the copy is JSON", remedy="Name it .json or .jsonl.")
    if any(file.is_table for file in diagnosis_files):
        raise UsageError(
            "--fix writes JSON, which cannot hold the pictures of a table",
            remedy="Mend the table where it was made; the report names the rows.",
        )
    taken = {file.path.resolve() for file in diagnosis_files} | {Path(part) for part in data.split(",")}
    if target.resolve() in {path.resolve() for path in taken}:
        raise UsageError(f"--fix {target} would replace the data itself", remedy="Choose another name.")
    if "," in data and not Path(data).exists():
        raise UsageError("--fix takes one file or one mixture", remedy="Run it for each file.")


def write_fixed(diagnosis: Diagnosis, target: Path, *, tokens: TokenChecker | None = None) -> Fixed:
    """Write the cleaned copy to `target`, for a mixture the meta file and its data in a folder beside it.

    tokens: checks what was mended, which the examination could not encode. Raises UsageError.
    Contract: the diagnosis is of all the data, and the data has not changed since.
    """
    if diagnosis.is_partial:
        raise UsageError("--fix needs all samples", remedy="Leave out --max-samples.")
    fixed = Fixed(target, target.with_suffix(".changes.jsonl"))
    writer = _Writer(diagnosis, fixed, tokens)
    with atomic_path(fixed.changes) as temporary, temporary.open("w", encoding="utf-8") as log:
        writer.log = log
        if is_mixture(Path(diagnosis.data)):
            writer.write_mixture(target)
        else:
            writer.write_file(diagnosis.files[0], target)
    return fixed


def _json(value: dict[str, object]) -> str:
    """Return a sample as JSON, readable where that is possible."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_encodable(text) else json.dumps(value)


class _Writer:
    """Goes through the data again in the same order and numbers samples as the examination did."""

    def __init__(self, diagnosis: Diagnosis, fixed: Fixed, tokens: TokenChecker | None) -> None:
        self.diagnosis = diagnosis
        self.fixed = fixed
        self.tokens = tokens
        self.log: IO[str] | None = None
        self._number = 0
        self._ids: set[str] = set()

    def write_mixture(self, target: Path) -> None:
        """Write every readable entry's data, and a meta file of those that kept samples."""
        entries = json.loads(read_text(Path(self.diagnosis.data)).removeprefix("\ufeff"))
        folder = target.with_suffix("")
        meta: dict[str, object] = {}
        for number, file in enumerate(self.diagnosis.files):
            name = "".join(char if char.isalnum() or char in "-_." else "_" for char in file.name)
            path = folder / f"{number:03d}-{name}.jsonl"
            num_before = self.fixed.num_kept
            self.write_file(file, path)
            if self.fixed.num_kept == num_before:
                continue
            old = entries[file.name]
            entry: dict[str, object] = {"annotation": os.path.relpath(path, target.parent)}
            entry["root"] = str(file.folder)
            entry |= {key: old[key] for key in ("data_augment",) if isinstance(old.get(key), bool)}
            # With a weight the entry has no repeat_time, or the trainer refuses it.
            weight = old.get("weight")
            if isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0:
                entry["weight"] = weight
            else:
                entry["repeat_time"] = int(file.repeat) if file.repeat == int(file.repeat) else file.repeat
            meta[file.name] = entry
        write_json(target, meta)

    def write_file(self, file: DataFile, target: Path) -> None:
        """Write one file's samples as a JSON list or as JSONL, by the target's name."""
        is_list = target.suffix.lower() == ".json"
        with ExitStack() as stack:
            out = stack.enter_context(stack.enter_context(atomic_path(target)).open("w", encoding="utf-8"))
            separator = "[\n" if is_list else ""
            is_empty = True
            for value in self._values(file):
                out.write(separator + _json(value))
                separator = ",\n" if is_list else "\n"
                is_empty = False
            out.write(("[]\n" if is_empty else "\n]\n") if is_list else ("" if is_empty else "\n"))

    def _values(self, file: DataFile) -> Iterator[dict[str, object]]:
        """Yield what is kept of a file."""
        faults: list[tuple[str, int, str]] = []
        for item in file.items(lambda code, line, detail: faults.append((code, line, detail))):
            self._note_file_faults(file, faults)
            number, self._number = self._number, self._number + 1
            where = f"{file.name}:{item.line}"
            name = item.value.get("id") if isinstance(item.value, dict) else None
            code = self.diagnosis.dropped.get(number)
            if code is not None:
                self._drop(where, name, [Change(code, "dropped")])
                continue
            value, changes = mend(item.value, lambda text: self._spelling(file, text))
            if value is not None and changes:
                refusal = self._refusal(value, file, where, number)
                if refusal is not None:
                    value, changes = None, [refusal]
            if value is None:
                self._drop(where, name, changes)
                continue
            self._number_id(value, file, number, changes)
            self.fixed.num_kept += 1
            self.fixed.num_changed += bool(changes)
            self._note(where, name, "changed", changes)
            yield value
        self._note_file_faults(file, faults)

    def _refusal(self, value: dict[str, object], file: DataFile, where: str, number: int) -> Change | None:
        """Return why a mended sample cannot be trained on, or None."""
        try:
            record = record_of(value, source=file.name, where=where, number=number + 1, folder=file.pictures)
        except DataError as error:
            return Change("record-refused", f"dropped: {error.cause}")
        faults = [] if self.tokens is None else self.tokens.faults(record)
        return next(
            (
                Change(code, f"dropped: {detail}")
                for code, detail in faults
                if KINDS[code].severity == "error"
            ),
            None,
        )

    def _spelling(self, file: DataFile, name: str) -> str:
        path, _ = locate(name, file.folder, is_limit=file.is_limit)
        real = self.diagnosis.spellings.get(path)
        if real is None:
            return name
        return real if os.path.isabs(name) else os.path.relpath(real, file.folder)

    def _number_id(
        self, value: dict[str, object], file: DataFile, number: int, changes: list[Change]
    ) -> None:
        """Give the sample an id that no sample before it has."""
        own = value.get("id")
        base = f"{Path(file.name).stem}-{number + 1}" if own is None or own == "" else str(own)
        unique, count = base, 1
        while unique in self._ids:
            count += 1
            unique = f"{base}-{count}"
        self._ids.add(unique)
        if own is None or own == "":
            value["id"] = unique
            changes.append(Change("id-missing", f"id {unique!r} given"))
        elif unique != base:
            value["id"] = unique
            changes.append(Change("id-duplicate", f"id {base!r} changed to {unique!r}"))

    def _drop(self, where: str, name: object, changes: list[Change]) -> None:
        self.fixed.num_dropped += 1
        self._note(where, name, "dropped", changes)

    def _note_file_faults(self, file: DataFile, faults: list[tuple[str, int, str]]) -> None:
        for code, line, detail in faults:
            action = "dropped" if code == "json-syntax" else "changed"
            self.fixed.num_dropped += code == "json-syntax"
            self._note(f"{file.name}:{line}", None, action, [Change(code, detail)])
        faults.clear()

    def _note(self, where: str, name: object, action: str, changes: list[Change]) -> None:
        assert self.log is not None, "the list of changes is open while data is written"
        for change in changes:
            self.fixed.codes[change.code] += 1
            line = {"where": where, "id": name, "action": action, "code": change.code, "what": change.what}
            self.log.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
