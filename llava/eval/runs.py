"""What is kept of an evaluation: a folder for each benchmark and model.

RUNS/MODEL/BENCHMARK/answers.jsonl                the answers, in the original's form
RUNS/MODEL/BENCHMARK/answers.jsonl.settings.json  what they depend on
RUNS/MODEL/BENCHMARK/score.json                   figures, intervals, and what scored them
RUNS/MODEL/BENCHMARK/items.jsonl                  what each question earned
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import llava
from llava.errors import FileError
from llava.eval.answers import read_answers
from llava.eval.benchmark import Benchmark, Files, Item, Scoring, get_benchmark
from llava.eval.statistics import intervals
from llava.files import read_json, read_jsonl, write_json, write_jsonl
from llava.journal import settings_path

ANSWERS, SCORE, ITEMS = "answers.jsonl", "score.json", "items.jsonl"


@dataclass(frozen=True)
class Run:
    """A stored run of one benchmark."""

    folder: Path
    record: Mapping[str, Any]
    """score.json."""

    @property
    def benchmark(self) -> str:
        """Its name, or the YAML file that says what it is."""
        return str(self.record["benchmark"])

    @property
    def model(self) -> str:
        """What answered."""
        return str(self.record["model"])

    @property
    def value(self) -> float:
        """The headline's value."""
        return float(self.record["figures"][self.record["headline"]])

    @property
    def interval(self) -> Mapping[str, float] | None:
        """The headline's interval, as `Interval.to_dict` gives it."""
        found: Mapping[str, float] | None = self.record["intervals"].get(self.record["headline"])
        return found

    @property
    def is_compat(self) -> bool:
        """Whether it was scored with what ours mends left as in the original."""
        return bool(self.record.get("is_compat", False))

    @property
    def trust(self) -> Mapping[str, Any]:
        """What was found about the judge (`judge/trust.py`); empty where nothing was looked for."""
        found: Mapping[str, Any] = self.record["details"].get("trust", {})
        return found

    def files(self) -> Files:
        """Return where its data was."""
        given = {name: None if path is None else Path(path) for name, path in self.record["files"].items()}
        return Files(**given)  # type: ignore[arg-type]

    def items(self) -> list[Item]:
        """Return what each question earned; raises FileError."""
        return [Item(**item) for _, item in read_jsonl(self.folder / ITEMS)]

    def answers(self) -> list[dict[str, Any]]:
        """Return the answer records, none where they are gone."""
        path = self.folder / ANSWERS
        return read_answers(path) if path.exists() else []

    def scoring(self) -> Scoring:
        """Return the scoring; figures that are no mean are scored again. Raises FileError, DataError."""
        if self.record["is_mean"]:
            return Scoring(self.record["headline"], self.record["figures"], self.items(), None)
        benchmark = get_benchmark(self.benchmark)
        score = benchmark.score_as_original if self.is_compat else benchmark.score
        scoring = score(self.files(), self.answers())
        asked = {item.id for item in self.items()}
        return replace(scoring, items=[item for item in scoring.items if item.id in asked])


def store_score(
    folder: Path,
    scoring: Scoring,
    *,
    benchmark: Benchmark,
    source: str,
    files: Files,
    model: str,
    answers: Path,
    is_compat: bool = False,
) -> Run:
    """Write what a scoring came to, and return the run.

    source: the name by which the benchmark is found again. is_compat: whether `score_as_original` scored.
    """
    stored_at = settings_path(answers)
    record: dict[str, Any] = {
        "benchmark": source,
        "title": benchmark.title,
        "unit": benchmark.unit,
        "model": model,
        "headline": scoring.headline,
        "figures": dict(scoring.figures),
        "intervals": {name: found.to_dict() for name, found in intervals(scoring).items()},
        "is_mean": scoring.aggregate is None,
        "num_items": len(scoring.items),
        "details": scoring.details,
        "notices": list(scoring.notices),
        "files": {name: None if path is None else str(path) for name, path in asdict(files).items()},
        "questions_sha256": _hash_of(files.questions),
        "is_compat": is_compat,
        "scorer": {"version": llava.__version__, "sha256": scorer_hash(benchmark)},
        "settings": read_json(stored_at) if stored_at.exists() else {},
    }
    write_jsonl(folder / ITEMS, ({**asdict(item), "extra": dict(item.extra)} for item in scoring.items))
    write_json(folder / SCORE, record)
    return Run(folder, record)


def scorer_hash(benchmark: Benchmark) -> str:
    """Return a hash of the code that scores: it changes when the benchmark's module does."""
    return hashlib.sha256(inspect.getsource(inspect.getmodule(type(benchmark))).encode()).hexdigest()[:16]  # type: ignore[arg-type]


def _hash_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in some folders: of a run, a model, or all; raises FileError where there is none."""
    runs = []
    for path in paths:
        found = sorted(path.rglob(SCORE)) if path.is_dir() else []
        if not found:
            raise FileError(
                f"{path} holds no run", remedy=f"A run's folder has a {SCORE}: see llava eval --help"
            )
        runs += [Run(place.parent, read_json(place)) for place in found]
    return runs
