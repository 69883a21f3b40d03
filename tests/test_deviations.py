"""docs/deviations.md: numbered in order, and every row names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| D\d\d ", line)
]


NUM_DEVIATIONS = 95


def test_every_deliberate_difference_is_counted() -> None:
    assert len(ROWS) == NUM_DEVIATIONS, "a new difference needs a row, and this number a change that says so"


def test_rows_are_numbered_in_order_and_complete() -> None:
    # Numbers stay with their rows, so there may be gaps.
    numbers = [row[0] for row in ROWS]
    assert numbers == sorted(set(numbers))
    assert all(len(row) == 5 and all(row) for row in ROWS)


def test_every_row_names_a_test_that_exists() -> None:
    for number, *_, test in ROWS:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{number}: {test}"
