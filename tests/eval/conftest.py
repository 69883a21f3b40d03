"""Where the recorded runs of the original are, if they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = [folder / "shared" / "fixtures" / "eval" for folder in (ROOT, *ROOT.parents)]


@pytest.fixture(scope="session")
def original() -> Path:
    """The folder of the original's recorded evaluation, at the checkout or above; skips without it."""
    found = next((place for place in PLACES if place.is_dir()), None)
    if found is None:
        pytest.skip("the original's recorded evaluation is not here")
    return found
