"""What the doctor knows about the data in the end: findings, numbers by file, lengths, previews.

Written by `examine`, read by the command, the report and `fix`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llava.data.doctor.findings import Findings
from llava.data.doctor.sources import DataFile
from llava.data.doctor.tokens import Forecast, Length, Piece


@dataclass
class SourceRow:
    """Numbers of one data file."""

    name: str
    path: str
    repeat: float = 1.0
    num_samples: int = 0
    num_with_pictures: int = 0
    num_pictures: int = 0
    """Uses of pictures, not distinct files."""
    num_turns: int = 0
    num_sound: int = 0
    """Samples without errors."""
    num_tokens: int = 0
    num_targets: int = 0
    num_encoded: int = 0


class Lengths:
    """Lengths of all samples that could be encoded, in order."""

    def __init__(self) -> None:
        self._columns = (array("i"), array("i"), array("i"))

    def add(self, length: Length) -> None:
        """Append a sample."""
        for column, value in zip(self._columns, length, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self._columns[0])

    @property
    def text(self) -> npt.NDArray[np.int32]:
        """int32[n]."""
        return np.array(self._columns[0], dtype=np.int32)

    @property
    def pictures(self) -> npt.NDArray[np.int32]:
        """int32[n], positions."""
        return np.array(self._columns[1], dtype=np.int32)

    @property
    def total(self) -> npt.NDArray[np.int32]:
        """int32[n]."""
        return self.text + self.pictures

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """int32[n]."""
        return np.array(self._columns[2], dtype=np.int32)


@dataclass
class Preview:
    """What one sample looks like to the model."""

    where: str
    id: str
    pieces: Sequence[Piece]
    pictures: Sequence[str]
    """Paths."""


@dataclass
class Diagnosis:
    """All that was found out."""

    data: str
    files: list[DataFile] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    rows: list[SourceRow] = field(default_factory=list)
    lengths: Lengths = field(default_factory=Lengths)
    forecasts: list[Forecast] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    max_length: int = 0
    num_image_tokens: int = 0
    tokenizer: str = ""
    """Where the tokenizer is from; empty: tokens were not looked at."""
    template: str = ""
    num_pictures: int = 0
    """Distinct ones."""
    num_readable: int = 0
    num_benchmark: int = 0
    num_with_errors: int = 0
    """Samples."""
    seconds: float = 0.0
    is_partial: bool = False
    """Whether --max-samples ended the reading."""
    dropped: dict[int, str] = field(default_factory=dict)
    """Number of a sample -> code of what makes it useless although its text is sound: for `fix`."""
    spellings: dict[str, str] = field(default_factory=dict)
    """Path of a picture -> as it is spelled on disk, for `fix`."""

    @property
    def num_samples(self) -> int:
        """Samples that were read."""
        return sum(row.num_samples for row in self.rows)

    @property
    def is_clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.findings.num("error") and not self.findings.num("warning")

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON holds it."""
        findings = self.findings
        return {
            "data": self.data,
            "is_clean": self.is_clean,
            "is_partial": self.is_partial,
            "num_samples": self.num_samples,
            "num_samples_with_errors": self.num_with_errors,
            "num_pictures": self.num_pictures,
            "num_readable_pictures": self.num_readable,
            "errors": findings.num("error"),
            "warnings": findings.num("warning"),
            "infos": findings.num("info"),
            "counts": {code: findings.counts[code] for code in findings.codes()},
            "findings": [finding.to_dict() for finding in findings],
            "files": [vars(row) for row in self.rows],
            "tokens": self._tokens(),
            "seconds": round(self.seconds, 3),
        }

    def _tokens(self) -> dict[str, object] | None:
        if not len(self.lengths):
            return None
        return {
            "tokenizer": self.tokenizer,
            "template": self.template,
            "max_length": self.max_length,
            "num_image_tokens": self.num_image_tokens,
            "text": int(self.lengths.text.sum()),
            "pictures": int(self.lengths.pictures.sum()),
            "targets": int(self.lengths.targets.sum()),
            "longest": int(self.lengths.total.max()),
            "forecast": [vars(forecast) for forecast in self.forecasts],
        }
