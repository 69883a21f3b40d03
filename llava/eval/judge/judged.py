"""What a benchmark adds whose answers a judge scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava.errors import UsageError
from llava.eval.benchmark import Benchmark, Files
from llava.eval.judge.judge import Judge
from llava.eval.judge.options import Judging

NO_JUDGE = (
    "Name a judge with --judge-url or --judge-path (docs/judge.md), or give what one said with --reviews."
)


class JudgedBenchmark(Benchmark):
    """A benchmark that `score` computes from `Files.reviews`, which `grade` has a judge write."""

    is_judged = True
    judge: ClassVar[str]
    """Whom the published figures are of."""
    reviews_file: ClassVar[str]
    """What to call the file of `Files.reviews`."""
    compares: ClassVar[bool]
    """Whether the judge sees two answers at once, which may be shown the other way round."""

    @abstractmethod
    def grade(
        self,
        files: Files,
        records: Sequence[dict[str, Any]],
        judge: Judge,
        target: Path,
        judging: Judging,
    ) -> Path:
        """Have answer records judged and return the file that `Files.reviews` takes; goes on with `target`.

        What is found about the judge itself stands beside `target` (`trust.stored_trust`).
        Raises what the judge raises, FileError, DataError.
        """

    def reviews(self, files: Files) -> Path:
        """Return the file of what a judge said; raises UsageError without one."""
        if files.reviews is None:
            raise UsageError(f"{self.title}: a judge gives the score", remedy=NO_JUDGE)
        self.require(files.reviews)
        return files.reviews
