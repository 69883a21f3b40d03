"""The engine behind a command: picture rules are the checkpoint's unless asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from llava.engine.engine import ChatEngine
from llava.engine.model_options import ModelOptions, load_engine

CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "checkpoints" / "llava-a-clip-mlp2x"


@pytest.mark.parametrize(("asked", "used"), [(None, "pad"), ("pad", "pad"), ("square", "square")])
def test_pictures_are_padded_as_the_checkpoint_says_unless_asked_otherwise(
    asked: Literal["pad", "square"] | None, used: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = load_engine(ModelOptions(path=str(CHECKPOINT), device="cpu", image_aspect=asked))
    assert isinstance(engine, ChatEngine)
    assert engine.processor.image_processor.rules.aspect == used
    assert ("against the checkpoint's pad" in capsys.readouterr().err) == (asked == "square")
