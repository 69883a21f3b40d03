"""docs/MODEL_ZOO.md is what its records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llava
from llava.eval.benchmark import Item, Scoring, get_benchmark
from llava.eval.runs import store_score
from llava.eval.zoo import main, render

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    rows = json.loads((DOCS / "model_zoo.json").read_text(encoding="utf-8"))
    assert (DOCS / "MODEL_ZOO.md").read_text(encoding="utf-8") == render(rows)
    assert all(row["source"].startswith(("published, ", "measured, ")) for row in rows)


def test_runs_are_taken_in_beside_the_published_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    items = [Item(id=n, score=n % 2, cluster=str(n)) for n in range(40)]
    tiny = get_benchmark("tiny")
    store_score(
        tmp_path / "runs" / "tiny",
        Scoring("mean", {"mean": 50.0}, items, None),
        benchmark=tiny,
        source="tiny",
        files=tiny.files(Path("data")),
        model="mine",
        answers=tmp_path / "answers.jsonl",
    )
    Path("rows.json").write_text("[]")
    for _ in range(2):
        assert main(["--add", "runs", "--records", "rows.json", "-o", "zoo.md"]) == 0
    (line,) = [line for line in Path("zoo.md").read_text().splitlines() if line.startswith("| mine ")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[-3:-1] == ["50.0 (34.6 to 65.4)", f"measured, llava {llava.__version__}"]
    assert "| LLaVA-1.5-7B | 78.5 |" in Path("zoo.md").read_text()
