"""The embedded model InternVL-Chat-Tiny, its example pictures and the world of scenes it was trained on."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
_DEFAULT_EXAMPLE = "shapes.png"


def embedded_model_path() -> Path:
    """Return the folder of InternVL-Chat-Tiny, a checkpoint like any other."""
    return _FOLDER / "InternVL-Chat-Tiny"


def example_images() -> list[Path]:
    """Return the example pictures, the one that a chat starts with first."""
    paths = sorted((_FOLDER / "images").glob("*.png"))
    return sorted(paths, key=lambda path: path.name != _DEFAULT_EXAMPLE)
