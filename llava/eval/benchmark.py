"""What a benchmark is: files, questions, scores, a file to send in. `benchmarks/` has one module for each.

    files(root) -> questions(files) -> [the model answers] -> score(files, records) -> Scoring
                                                            -> export(files, records, path)

`Scoring.items` holds one entry a question with what it earned; `Scoring.aggregate` computes the figures from
items alone, so that intervals come from drawing items anew (`statistics.py`) whatever the metric is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from llava.command import nearest
from llava.errors import FileError, UsageError
from llava.eval.questions import Question, QuestionId, read_questions

DEFAULT_ROOT = Path("playground/data/eval")
"""Where the original's scripts expect the data, from the working directory."""

Figures = Mapping[str, float]
Aggregate = Callable[[Sequence["Item"]], Figures]


@dataclass(frozen=True)
class Files:
    """Where a benchmark's data is. Options replace single entries."""

    questions: Path
    images: Path
    annotations: Path | None = None
    """References: a file or a folder, as the benchmark has them; None where they are on a server."""
    context: Path | None = None
    """What else a judge is shown, where there is one."""
    reviews: Path | None = None
    """What a judge has said of the answers: reviews or grades."""

    def over(self, **given: Path | None) -> Files:
        """Return the same with every entry replaced that is given and not None."""
        return replace(self, **{name: path for name, path in given.items() if path is not None})


@dataclass(frozen=True, slots=True)
class Item:
    """What one question earned."""

    id: QuestionId
    score: float
    """0 to 1."""
    cluster: str
    """Items of one cluster (mostly: of one picture) are not independent."""
    category: str = "default"
    prediction: str | None = None
    """The answer as the scorer read it; None where it was missing."""
    reference: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What `aggregate` needs besides."""


@dataclass(frozen=True)
class Scoring:
    """The result of one benchmark."""

    headline: str
    """The figure that papers print; a key of `figures`."""
    figures: Figures
    """Every figure by name, as "accuracy" or "adversarial/f1", in the units of the original scorer."""
    items: Sequence[Item]
    aggregate: Aggregate | None
    """Computes `figures` from items; None where the headline is 100 times the mean of the items' scores."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Tables and whatever else the original scorer says, as JSON values."""
    notices: Sequence[str] = ()
    """What to know before believing the score."""

    @property
    def value(self) -> float:
        """The headline's value."""
        return self.figures[self.headline]


@dataclass(frozen=True, slots=True)
class Published:
    """A row of a paper or model zoo."""

    model: str
    value: float
    source: str


class Benchmark(ABC):
    """One benchmark. Instances hold no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = "%"
    max_new_tokens: ClassVar[int] = 128
    download: ClassVar[str]
    """What to fetch from where, and where it goes below the root: shown when data is missing."""
    published: ClassVar[tuple[Published, ...]] = ()
    is_judged: ClassVar[bool] = False
    """Whether a judge model gives the score."""
    is_cropped_originally: ClassVar[bool] = False
    """Whether InternVL's script crops pictures whatever the checkpoint says (--compat)."""

    @abstractmethod
    def files(self, root: Path) -> Files:
        """Return where the original's layout has the data below `root`; nothing is read."""

    def questions(self, files: Files) -> list[Question]:
        """Read what is asked, in the order of the original; raises FileError, DataError."""
        self.require(files.questions)
        return read_questions(files.questions)

    @abstractmethod
    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score answer records by the original's rules; raises DataError where they cannot be scored.

        Raises UsageError where the references are on a server only; `remedy` then says how to send in.
        """

    def item_ids(self, files: Files, questions: Sequence[Question]) -> set[QuestionId]:
        """Return what the items of some questions are called in a scoring; raises FileError, DataError."""
        del files
        return {question.id for question in questions}

    def score_as_original(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Score with what `score` mends left as it was; the same where no figure depends on it.

        Raises what `score` raises, and DataError where the original would end in an error.
        """
        return self.score(files, records)

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write the file that the benchmark's server or scorer takes, and return where.

        Raises UsageError where there is none, DataError where the server would refuse it.
        """
        del files, records, target
        raise UsageError(f"{self.title} takes no submission file", remedy="Use: llava eval score")

    def require(self, *paths: Path | None) -> None:
        """Raise FileError that says what to download, unless all of the files are there."""
        missing = [path for path in paths if path is not None and not path.exists()]
        if missing:
            raise FileError(f"{self.title}: {missing[0]} does not exist", remedy=self.download)


_MODULES = {
    "vqav2": "vqav2",
    "gqa": "gqa",
    "vizwiz": "vizwiz",
    "scienceqa": "scienceqa",
    "textvqa": "textvqa",
    "pope": "pope",
    "mme": "mme",
    "mmbench": "mmbench",
    "mmbench-cn": "mmbench",
    "seed": "seed_bench",
    "llava-bench": "llava_bench",
    "mm-vet": "mm_vet",
    "tiny": "tiny",
}
BENCHMARKS = tuple(_MODULES)
"""Names in the order of the published tables; "tiny" is the embedded model's own."""
ALIASES = {
    "sqa": "scienceqa",
    "science_qa": "scienceqa",
    "mmbench_cn": "mmbench-cn",
    "seed_bench": "seed",
    "seed-bench": "seed",
    "llava_bench": "llava-bench",
    "llavabench": "llava-bench",
    "mmvet": "mm-vet",
    "mm_vet": "mm-vet",
}


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name or of a YAML file; raises UsageError naming the nearest one."""
    if name.endswith((".yaml", ".yml")):
        custom: Benchmark = import_module("llava.eval.benchmarks.custom").read_benchmark(Path(name))
        return custom
    own = ALIASES.get(name, name)
    if own not in _MODULES:
        raise UsageError(
            f"benchmark {name!r} is not known",
            remedy=f"{nearest(name, BENCHMARKS)}Known: {', '.join(BENCHMARKS)}, or a YAML file of yours.",
        )
    module = import_module(f"llava.eval.benchmarks.{_MODULES[own]}")
    for benchmark in module.BENCHMARKS:
        if benchmark.name == own:
            found: Benchmark = benchmark
            return found
    raise AssertionError(f"{module.__name__} lacks {own}")
