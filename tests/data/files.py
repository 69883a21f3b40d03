"""Data files for the tests of `llava.data`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def sample(number: int, *, image: Any = None, question: str = "What is it?", **more: Any) -> dict[str, Any]:
    """One sample in LLaVA's spelling; with a picture, its place is put in front."""
    text = f"<image>\n{question}" if image is not None else question
    return {
        "id": f"s{number}",
        **({} if image is None else {"image": image}),
        "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": f"Answer {number}."}],
        **more,
    }


def write_lines(path: Path, samples: Iterable[Any]) -> Path:
    """Write JSONL; a text is written as it stands."""
    lines = (one if isinstance(one, str) else json.dumps(one) for one in samples)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_list(path: Path, samples: Iterable[Any], *, indent: int | None = None) -> Path:
    """Write a JSON list."""
    path.write_text(json.dumps(list(samples), indent=indent), encoding="utf-8")
    return path
