"""MM-Vet: 218 questions that need several capabilities at once, graded from 0 to 1 by a judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.eval.answers import match
from llava.eval.benchmark import Figures, Files, Item, Scoring
from llava.eval.judge import mmvet
from llava.eval.judge.judge import Judge
from llava.eval.judge.judged import JudgedBenchmark
from llava.eval.judge.options import Judging
from llava.eval.judge.summary import unread_notices
from llava.eval.judge.trust import stored_trust, trust_lines
from llava.eval.published import published_for
from llava.eval.questions import Question, QuestionId
from llava.files import read_json, write_text


class MmVet(JudgedBenchmark):
    """Recognition, reading, knowledge, generation, space and mathematics together."""

    name = "mm-vet"
    title = "MM-Vet"
    max_new_tokens = 1024
    is_cropped_originally = True
    judge = "gpt-4-0613"
    reviews_file = "grades.json"
    compares = False
    download = (
        "Put LLaVA's llava-mm-vet.jsonl, and images and mm-vet.json of MM-Vet's mm-vet.zip, in mm-vet; for a "
        f"judge also {mmvet.EVALUATOR}, which has the few-shot prompt."
    )
    published = published_for("mm-vet")

    def files(self, root: Path) -> Files:
        """Return the layout of the original; the grader's prompt is looked for beside the data."""
        own = root / "mm-vet"
        return Files(
            own / "llava-mm-vet.jsonl", own / "images", own / "mm-vet.json", own / "mm-vet_evaluator.py"
        )

    def grade(
        self,
        files: Files,
        records: Sequence[dict[str, Any]],
        judge: Judge,
        target: Path,
        judging: Judging,
    ) -> Path:
        """Have every answer graded once."""
        self.require(files.annotations)
        if files.annotations is None or files.context is None:
            raise DataError("MM-Vet needs references and a prompt", remedy=self.download)
        references = mmvet.read_references(files.annotations)
        prompt = mmvet.read_prompt(files.context)
        mmvet.grade_and_check(references, self._predictions(files, records), judge, prompt, target, judging)
        return target

    def item_ids(self, files: Files, questions: Sequence[Question]) -> set[QuestionId]:
        """Return the ids of mm-vet.json."""
        del files
        return {f"v1_{question.id}" for question in questions}

    def score(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Compute the original's tables from grades; those that cannot be read are told and left out."""
        del records
        return self._score(files, compat=False)

    def score_as_original(self, files: Files, records: Sequence[dict[str, Any]]) -> Scoring:
        """Count a grade that cannot be read as 0, as MM-Vet's evaluator does."""
        del records
        return self._score(files, compat=True)

    def _score(self, files: Files, *, compat: bool) -> Scoring:
        grades: mmvet.Grades = read_json(self.reviews(files))
        self.require(files.annotations)
        if files.annotations is None:
            raise DataError("MM-Vet needs its references", remedy=self.download)
        references = mmvet.read_references(files.annotations)
        foreign = [name for name in grades if name not in references]
        if foreign:
            raise DataError(f"{files.reviews}: {foreign[0]} is not a question of {files.annotations}")
        num_run = min((len(own["score"]) for own in grades.values()), default=0)
        if not num_run:
            raise DataError(f"{files.reviews} has no grades", remedy="Have the answers judged.")
        broken = [] if compat else mmvet.unread(grades)
        items = [
            _item(name, own, grades.get(name, {})) for name, own in references.items() if name not in broken
        ]
        notices = unread_notices(broken, len(references), "grades")
        if missing := [name for name in references if name not in grades]:
            notices.append(f"{len(missing)} questions have no grade ({missing[0]}, ...): counted as wrong")
        details = mmvet.tables(references, grades, num_run=num_run, compat=compat)
        trust = stored_trust(self.reviews(files))
        return Scoring(
            "total",
            aggregate(items),
            items,
            aggregate,
            details=details | ({"trust": trust} if trust else {}),
            notices=notices + trust_lines(trust),
        )

    def export(self, files: Files, records: Sequence[dict[str, Any]], target: Path) -> Path:
        """Write what MM-Vet's own evaluator reads: {"v1_0": answer, ...}."""
        write_text(target, json.dumps(self._predictions(files, records), indent=2))
        return target

    def _predictions(self, files: Files, records: Sequence[dict[str, Any]]) -> dict[str, str]:
        matching = match(self.questions(files), records)
        return {f"v1_{identity}": str(own["text"]) for (identity, _), own in matching.records.items()}


def _item(name: str, reference: mmvet.Reference, grades: dict[str, list[Any]]) -> Item:
    scores = [float(score) for score in grades.get("score", ())]
    return Item(
        name,
        sum(scores) / len(scores) if scores else 0.0,
        reference.image,
        "_".join(sorted(reference.capabilities)),
        prediction=", ".join(str(text) for text in grades.get("content", ())) or None,
        reference=reference.answer,
        extra={"capabilities": list(reference.capabilities)},
    )


def aggregate(items: Sequence[Item]) -> Figures:
    """Return the mean grade in percent, overall and of the questions that need each capability."""
    groups: dict[str, list[float]] = {"total": [item.score for item in items]}
    for item in items:
        for name in item.extra["capabilities"]:
            groups.setdefault(name, []).append(item.score)
    return {name: 100 * sum(scores) / max(1, len(scores)) for name, scores in groups.items()}


BENCHMARKS = (MmVet(),)
