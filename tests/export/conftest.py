"""What tests of several formats need."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.model.folders import BASE, FIXTURES

TRAINING = FIXTURES.parent / "training"


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Path, Path]:
    """The LoRA folder that the original wrote beside its tower, and its base."""
    base = tmp_path / "vicuna-f-base with tokenizer-mt"
    shutil.copytree(BASE, base)
    shutil.copytree(TRAINING / "tokenizer-mt", base, dirs_exist_ok=True)
    shutil.copytree(FIXTURES / "towers", tmp_path / "checkpoints" / "towers")
    return Path(shutil.copytree(TRAINING / "lora" / "written", tmp_path / "x" / "y")), base
