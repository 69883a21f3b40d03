"""Evaluate a model on benchmarks.

  llava eval pope mme --model FOLDER        answer, score, and one table; `all`: every benchmark
  llava eval my.yaml --model FOLDER         a benchmark of your own (docs/evaluation.md)
  llava eval answer pope --model FOLDER     the answers only
  llava eval score pope --answers FILE      score answers, wherever they come from
  llava eval export vqav2 --answers FILE -o FILE
                                            the file that a benchmark's server takes
  llava eval compare RUN RUN                the difference, how sure it is, and what else differs
  llava eval report RUN... -o report.html   scores, plots and answers on one page

Data is looked for below --data, where the original's scripts have it; what is missing is said with where to
get it. Answers and scores are kept in --runs/MODEL/BENCHMARK; the same command again goes on where it ended.
Exit code 1: some questions have no answer, or some benchmarks no data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import say
from llava.errors import UsageError
from llava.eval.benchmark import BENCHMARKS, DEFAULT_ROOT
from llava.eval.judge.options import add_anchor_arguments, add_judge_arguments, add_swap_argument
from llava.eval.options import add_answering_arguments

DEFAULT_RUNS = Path("runs/eval")
STEPS = ("answer", "score", "export", "compare", "report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava eval`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "words", nargs="+", metavar="STEP|BENCHMARK|RUN",
        help=f"a step ({', '.join(STEPS)}) and what it is for, or benchmarks: {', '.join(BENCHMARKS)}, all",
    )  # fmt: skip
    parser.add_argument("--model", "--model-path", metavar="PATH", help="checkpoint, GGUF file or endpoint")
    parser.add_argument("--model-base", metavar="PATH", help="language model under a projector or LoRA")
    parser.add_argument("--model-id", metavar="NAME", help="what to call the model (default: from its path)")
    parser.add_argument("--data", type=Path, default=DEFAULT_ROOT, help="where the data is (%(default)s)")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="where results go (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    data = parser.add_argument_group("one benchmark's files, over those below --data")
    data.add_argument("--questions", type=Path, metavar="FILE")
    data.add_argument("--images", type=Path, metavar="FOLDER")
    data.add_argument("--annotations", type=Path, metavar="PATH")
    data.add_argument("--context", type=Path, metavar="FILE")
    data.add_argument("--answers", type=Path, metavar="FILE", help="answers to score or export")
    data.add_argument("-o", "--output", type=Path, metavar="FILE", help="of answer, export and report")
    asking = parser.add_argument_group("asking")
    asking.add_argument("--template", "--conv-mode", metavar="NAME", help="over the checkpoint's")
    asking.add_argument("--image-aspect-ratio", choices=("pad", "square"), help="over the checkpoint's")
    asking.add_argument(
        "--compat", action="store_true",
        help="the original's figures: pictures, reading of replies and scores as its scripts had them",
    )  # fmt: skip
    asking.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    asking.add_argument("--max-new-tokens", type=int, help="over the benchmark's")
    add_answering_arguments(parser)
    judging = parser.add_argument_group("a judge, for llava-bench and mm-vet")
    judging.add_argument("--reviews", type=Path, metavar="FILE", help="what a judge has said already")
    add_judge_arguments(judging)
    add_swap_argument(judging)
    add_anchor_arguments(judging)


def run(args: argparse.Namespace) -> int:
    """Do the step that was named, or all of them for the benchmarks that were."""
    first, *names = args.words
    if first not in STEPS:
        from llava.eval.evaluating import evaluate

        return evaluate(args, args.words)
    if not names:
        what = "a run" if first in ("compare", "report") else "a benchmark"
        raise UsageError(f"llava eval {first} needs {what}", remedy="See: llava eval --help")
    if first == "compare":
        from llava.eval.comparing import compare_folders

        return compare_folders([Path(name) for name in names], as_json=args.json)
    if first == "report":
        from llava.eval.report import write_report

        say(str(write_report([Path(name) for name in names], args.output or Path("report.html"))))
        return 0
    from llava.eval import steps

    if len(names) > 1:
        raise UsageError(f"llava eval {first} takes one benchmark", remedy="Name one at a time.")
    step = {"answer": steps.answer, "score": steps.score, "export": steps.export}[first]
    return step(args, names[0])
