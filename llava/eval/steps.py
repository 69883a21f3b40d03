"""The single steps of `llava eval`: answer, score, export; and the parts that all of them are made of."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava.command import EXIT_OK, note, say
from llava.engine.request import SamplingParams
from llava.errors import UsageError
from llava.eval.answers import read_answers
from llava.eval.benchmark import Benchmark, Files, Scoring, get_benchmark
from llava.eval.options import devices_of, model_id_of, model_options_of
from llava.eval.questions import Question
from llava.eval.runs import ANSWERS, store_score
from llava.eval.statistics import intervals

if TYPE_CHECKING:
    from llava.eval.answering import Answerer


@dataclass(frozen=True)
class Chosen:
    """A benchmark and where its data is."""

    source: str
    """The name or YAML file it was asked for by."""
    benchmark: Benchmark
    files: Files

    def questions(self, limit: int | None) -> list[Question]:
        """Read the questions; raises FileError that says what to download."""
        return self.benchmark.questions(self.files)[:limit]

    def score(
        self, records: Sequence[dict[str, Any]], limit: int | None, *, is_compat: bool = False
    ) -> Scoring:
        """Score answer records; with a limit, only the questions that were asked count."""
        score = self.benchmark.score_as_original if is_compat else self.benchmark.score
        scoring = score(self.files, records)
        mark = ["scored as the original scores (--compat)"] if is_compat else []
        scoring = replace(scoring, notices=[*mark, *scoring.notices])
        if limit is None:
            return scoring
        asked = self.benchmark.item_ids(self.files, self.questions(limit))
        items = [item for item in scoring.items if item.id in asked]
        mean = {scoring.headline: 100 * math.fsum(item.score for item in items) / max(1, len(items))}
        figures = mean if scoring.aggregate is None else scoring.aggregate(items)
        notices = [*mark, f"only the first {limit} questions"]
        if trust := scoring.details.get("trust"):
            from llava.eval.judge.trust import trust_lines

            notices += trust_lines(trust)
        return replace(scoring, items=items, figures=figures, notices=notices)


def choose(args: argparse.Namespace, name: str) -> Chosen:
    """Return the benchmark of that name with the files that the options give."""
    benchmark = get_benchmark(name)
    files = benchmark.files(args.data).over(
        questions=args.questions, images=args.images, annotations=args.annotations, context=args.context
    )
    return Chosen(name, benchmark, files)


def judged(args: argparse.Namespace, chosen: Chosen, path: Path) -> Chosen:
    """Have a judge score the answers at `path` where one is needed and named, and return where it says what.

    Without a judge, what one said of these answers before is taken, or the file of --reviews. Raises
    UsageError where a judge is to be asked more than that.
    """
    benchmark = chosen.benchmark
    if not benchmark.is_judged:
        return chosen
    from llava.eval.judge.judged import JudgedBenchmark
    from llava.eval.judge.options import has_judge, judging_of, open_judge

    assert isinstance(benchmark, JudgedBenchmark)
    judging = judging_of(args, swaps=args.swap and benchmark.compares)
    if judging.asks_more and (args.reviews is not None or not has_judge(args)):
        raise UsageError(
            "--swap and --anchor have a judge asked, and none is",
            remedy="Name one with --judge-url or --judge-path, and leave --reviews out.",
        )
    if args.swap and not benchmark.compares:
        note(f"note: {benchmark.title}: --swap has no effect: the judge sees one answer at a time")
    if args.reviews is not None:
        return replace(chosen, files=chosen.files.over(reviews=args.reviews))
    target = path.with_name(f"{path.stem}-{benchmark.reviews_file}")
    if has_judge(args):
        store = target.with_name(f"{target.name}.replies.jsonl")
        attempts = 1 if args.compat else None
        judge = open_judge(args, default_model=benchmark.judge, store=store, attempts=attempts)
        try:
            benchmark.grade(chosen.files, read_answers(path), judge, target, judging)
        finally:
            judge.close()
    return replace(chosen, files=chosen.files.over(reviews=target if target.exists() else None))


def aspect_of(args: argparse.Namespace, benchmark: Benchmark) -> Literal["pad", "square"] | None:
    """Return the picture rule that a benchmark is asked with, over the checkpoint's; None is the latter's."""
    given: Literal["pad", "square"] | None = args.image_aspect_ratio
    return "square" if given is None and args.compat and benchmark.is_cropped_originally else given


def open_model(args: argparse.Namespace, aspect: Literal["pad", "square"] | None) -> Answerer:
    """Load what answers; raises LlavaErrors."""
    # Scores and exports need no model, and none of what one brings with it.
    from llava.eval.answering import open_answerer

    options = model_options_of(args, path=args.model, template=args.template, aspect=aspect)
    return open_answerer(options, devices_of(args))


def model_name(args: argparse.Namespace) -> str:
    """Return what the model is called in records and folders."""
    return str(args.model_id or model_id_of(args.model))


def run_folder(args: argparse.Namespace, chosen: Chosen) -> Path:
    """Return where a run is kept; a part of the questions has a folder of its own."""
    part = f"-first-{args.limit}" if args.limit is not None else ""
    folder: Path = args.runs / model_name(args) / f"{chosen.benchmark.name}{part}"
    return folder


def ask(args: argparse.Namespace, chosen: Chosen, answerer: Answerer, path: Path) -> int:
    """Have a benchmark's questions answered into a file; returns the exit code."""
    from llava.eval.answering import Asking
    from llava.eval.generation import answer_file

    sampling = SamplingParams(
        temperature=args.temperature, max_new_tokens=args.max_new_tokens or chosen.benchmark.max_new_tokens
    )
    return answer_file(
        answerer,
        chosen.questions(args.limit),
        path,
        Asking(
            chosen.files.images,
            sampling,
            batch_size=args.batch_size,
            seed=args.seed,
            plain_pictures=args.compat,
        ),
        model_id=model_name(args),
        num_checked=args.check_batching,
    )


def answer(args: argparse.Namespace, name: str) -> int:
    """Answer one benchmark's questions."""
    chosen = choose(args, name)
    chosen.questions(args.limit)
    answerer = open_model(args, aspect_of(args, chosen.benchmark))
    try:
        return ask(args, chosen, answerer, args.output or run_folder(args, chosen) / ANSWERS)
    finally:
        answerer.close()


def score(args: argparse.Namespace, name: str) -> int:
    """Score answers and print every figure."""
    chosen = choose(args, name)
    path = args.answers or run_folder(args, chosen) / ANSWERS
    chosen = judged(args, chosen, path)
    scoring = chosen.score(read_answers(path), args.limit, is_compat=args.compat)
    for notice in scoring.notices:
        note(f"note: {notice}")
    if args.answers is None:
        store_score(
            path.parent,
            scoring,
            benchmark=chosen.benchmark,
            source=name,
            files=chosen.files,
            model=model_name(args),
            answers=path,
            is_compat=args.compat,
        )
    if args.json:
        say(json.dumps(score_record(chosen.benchmark, scoring), ensure_ascii=False))
    else:
        for line in score_lines(chosen.benchmark, scoring):
            say(line)
    return EXIT_OK


def score_record(benchmark: Benchmark, scoring: Scoring) -> dict[str, Any]:
    """Return a scoring as JSON values."""
    return {
        "benchmark": benchmark.name,
        "headline": scoring.headline,
        "value": scoring.value,
        "figures": dict(scoring.figures),
        "intervals": {name: found.to_dict() for name, found in intervals(scoring).items()},
        "details": scoring.details,
        "notices": list(scoring.notices),
        "num_items": len(scoring.items),
    }


def score_lines(benchmark: Benchmark, scoring: Scoring) -> list[str]:
    """Return every figure in a line of its own, with its interval where it has one."""
    found = intervals(scoring)
    lines = [f"{benchmark.title}, {len(scoring.items)} questions"]
    width = max(len(name) for name in scoring.figures)
    for name, value in scoring.figures.items():
        own = found.get(name)
        spread = f"  ({own.low:.2f} to {own.high:.2f})" if own is not None else ""
        lines.append(f"  {name:<{width}}  {value:9.3f}{spread}")
    return lines


def export(args: argparse.Namespace, name: str) -> int:
    """Write the file that the benchmark's server takes."""
    chosen = choose(args, name)
    if args.output is None:
        raise UsageError("llava eval export needs a file to write", remedy="Give it with -o.")
    path = args.answers or run_folder(args, chosen) / ANSWERS
    say(str(chosen.benchmark.export(chosen.files, read_answers(path), args.output)))
    return EXIT_OK
