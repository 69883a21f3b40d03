"""GGUF files of the tiny checkpoints, for the tests of the llama.cpp engine."""

from __future__ import annotations

from pathlib import Path

from llava.export.gguf import export_gguf

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "checkpoints"
IMAGES = [str(CHECKPOINTS / "images" / f"{number}.png") for number in range(4)]


def write_language_model(checkpoint: Path, folder: Path, file_type: str) -> Path:
    """Write the language model of a checkpoint alone, whatever its tower is, and return its path."""
    return export_gguf(checkpoint, folder, type=file_type, tower=False).model
