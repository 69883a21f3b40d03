"""How far an export is from its source: measured on the reloaded files, each figure with its limit.

A `Report` is printed, and written into the folder as parity.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava.export.outcomes import Outcome
from llava.files import write_json

FILE_NAME = "parity.json"
EXACT = 1e-5
"""Largest difference of features and logits between two computations of the same weights in float32."""
_ROUNDED = {torch.float32: EXACT, torch.bfloat16: 0.5}
_ROUNDED_OTHERWISE = 0.1


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of a report."""

    name: str
    value: float | str
    """Largest difference, or what was seen."""
    limit: float | str | None = None
    """What it may be at most, or must be; None where nothing is demanded."""
    passed: bool | None = None
    """None where nothing is demanded."""
    note: str = ""


@dataclass(frozen=True)
class Report:
    """How far an export is from its source."""

    format: str
    source: str
    settings: dict[str, Any]
    """How it was measured: dtype, device, number format."""
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every figure with a limit keeps it."""
        return all(measurement.passed is not False for measurement in self.measurements)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": self.format,
            "source": self.source,
            "passed": self.passed,
            "settings": self.settings,
            "measurements": [
                {name: getattr(item, name) for name in ("name", "value", "limit", "passed", "note")}
                for item in self.measurements
            ],
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Write parity.json into `folder`."""
        write_json(folder / FILE_NAME, self.to_dict())

    def lines(self) -> Iterator[str]:
        """Yield the report as aligned text."""
        width = max((len(item.name) for item in self.measurements), default=0)
        for item in self.measurements:
            verdict = {True: "pass", False: "FAIL", None: "    "}[item.passed]
            limit = "" if item.limit is None else f"  (limit {_shown(item.limit)})"
            note = f"  {item.note}" if item.note else ""
            yield f"{verdict}  {item.name:<{width}}  {_shown(item.value)}{limit}{note}"
        for note in self.notes:
            yield f"note: {note}"


def at_most(name: str, value: float, limit: float, note: str = "") -> Measurement:
    """Return a figure that may be `limit` at most."""
    return Measurement(name, value, limit, value <= limit, note)


def all_equal(name: str, num_equal: int, num_all: int, *, is_demanded: bool = True) -> Measurement:
    """Return a count that should be complete."""
    complete = f"{num_all} of {num_all}"
    passed = num_equal == num_all if is_demanded else None
    return Measurement(name, f"{num_equal} of {num_all}", complete if is_demanded else None, passed)


def compare(
    expected: Sequence[Outcome],
    found: Sequence[Outcome],
    *,
    compute_dtype: torch.dtype,
    lost_in: torch.dtype | None,
) -> tuple[Measurement, ...]:
    """Compare two runs of the same cases.

    lost_in: the dtype in which the weights were stored, where that rounded them; text is demanded equal only
    where it did not.
    """
    limit = max(_limit(dtype) for dtype in (compute_dtype, lost_in) if dtype is not None)
    is_lossless = lost_in is None
    pairs = list(zip(expected, found, strict=True))
    same_ids = sum(a.token_ids == b.token_ids for a, b in pairs)
    measurements = [all_equal("token ids equal", same_ids, len(pairs))]
    if same_ids == len(pairs):
        features = max(_largest(a.features, b.features) for a, b in pairs)
        logits = max(_largest(a.logits, b.logits) for a, b in pairs)
        measurements += [
            at_most("features, largest difference", features, limit),
            at_most("logits, largest difference", logits, limit * _scale(expected)),
        ]
    same_texts = sum(a.text.strip() == b.text.strip() for a, b in pairs)
    measurements.append(all_equal("greedy texts equal", same_texts, len(pairs), is_demanded=is_lossless))
    return tuple(measurements)


def _limit(dtype: torch.dtype) -> float:
    return _ROUNDED.get(dtype, _ROUNDED_OTHERWISE)


def _scale(outcomes: Sequence[Outcome]) -> float:
    """Return the size of the logits, at least 1: rounding grows with it."""
    return max(1.0, *(float(outcome.logits.abs().max()) for outcome in outcomes))


def _largest(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    if a is None or b is None:
        return 0.0
    return float((a - b).abs().max())


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
