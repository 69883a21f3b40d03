"""Measure how fast an engine answers: alone, and with several clients at a time.

  llava bench                                        the embedded model
  llava bench CHECKPOINT --concurrency 1 4 8         a checkpoint, a GGUF file
  llava bench http://127.0.0.1:8000/v1               any OpenAI-compatible endpoint
  llava bench --images same --json --output FOLDER   every request about one picture; bench.json and bench.png
  llava bench --self-check 16                        do answers change with the batch size?

One client is always measured too. Each client sends its next request when it has its answer; a request each
before the clock starts is not counted. Exit code 1: some requests failed; they are counted and named.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, note, say
from llava.engine.names import ENGINES
from llava.errors import DependencyError, UsageError
from llava.files import read_text, write_json

if TYPE_CHECKING:
    from llava.engine.protocol import Engine
    from llava.serve.bench.measuring import Clients
    from llava.serve.bench.report import Report
    from llava.serve.bench.workload import Workload

_PROBE_WORDS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava bench`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder, GGUF file or URL (default: the embedded model)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="what runs it (default: what fits the model)"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with the API key of an endpoint"
    )
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="clients (1 4 8)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="length of a prompt with its picture (default: short)"
    )
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="at most (%(default)s)")
    parser.add_argument(
        "--images", choices=("distinct", "same", "none"), default="distinct", help="(%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="R", help="requests of each client (%(default)s)"
    )
    parser.add_argument(
        "--self-check",
        type=int,
        metavar="N",
        help="also answer N requests one by one and together, and say how many answers differ",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write bench.json and bench.png there")


def run(args: argparse.Namespace) -> int:
    """Measure, and say what came out."""
    _check(args)
    from llava.serve.bench.opening import open_engine
    from llava.serve.bench.workload import Workload

    workload = Workload(num_new_tokens=args.new_tokens, images=args.images)
    api_key = read_text(args.api_key_file).strip() if args.api_key_file is not None else None
    engine = open_engine(args.model, engine=args.engine, api_key=api_key)
    try:
        report = measure(
            engine,
            workload,
            concurrency=args.concurrency,
            rounds=args.rounds,
            prompt_tokens=args.prompt_tokens,
        )
        if args.self_check is not None:
            report = _checked(report, engine, workload, args.self_check)
    finally:
        engine.close()
    if args.output is not None:
        _write(report, args.output)
    say(json.dumps(report.to_dict(), indent=2) if args.json else report.table())
    return EXIT_WITH_FAILURES if report.num_failed else EXIT_OK


def measure(
    engine: Engine,
    workload: Workload,
    *,
    concurrency: list[int],
    rounds: int,
    prompt_tokens: int | None = None,
) -> Report:
    """Measure one client and each number of clients in `concurrency`, `rounds` requests a client.

    prompt_tokens: lengthen the prompts to about so many.
    """
    from tqdm import tqdm

    from llava.serve.bench.bandwidth import read_bandwidth
    from llava.serve.bench.measuring import Clients
    from llava.serve.bench.opening import device_of
    from llava.serve.bench.report import Report

    levels = sorted({1, *concurrency})
    clients = Clients(engine, workload.request)
    notes: list[str] = []
    if prompt_tokens is not None:
        workload = _lengthened(clients, workload, prompt_tokens, notes)
    bandwidth = read_bandwidth(device_of(engine)) if engine.weight_bytes is not None else None
    with tqdm(total=sum(n * (rounds + 1) for n in levels), unit="request", disable=None) as progress:
        clients.make_request = workload.request
        clients.on_request = progress.update
        measured = tuple(clients.run(n, n * rounds) for n in levels)
    if 0 < measured[0].num_new_tokens < 0.9 * workload.num_new_tokens:
        notes.append(
            f"answers end by themselves after {measured[0].num_new_tokens:.0f} tokens, "
            f"before the {workload.num_new_tokens} that were allowed"
        )
    settings = {**asdict(workload), "rounds": rounds, "prompt_tokens": prompt_tokens}
    return Report(
        engine=engine.name,
        settings=settings,
        levels=measured,
        bytes_per_token=engine.weight_bytes,
        bandwidth=bandwidth,
        notes=tuple(notes),
    )


def _lengthened(clients: Clients, workload: Workload, wanted: int, notes: list[str]) -> Workload:
    """Return the workload with as many words as make a prompt of `wanted` tokens, found by asking twice."""
    from llava.serve.bench.workload import words_for

    lengths = []
    for num_words in (0, _PROBE_WORDS):
        clients.make_request = replace(workload, num_words=num_words, num_new_tokens=1).request
        sample = clients.one()
        lengths.append(sample.answer.num_prompt_tokens if sample.answer is not None else 0)
    if 0 in lengths:
        notes.append("the length of prompts is not known here; each gets a word for each token wanted")
        return replace(workload, num_words=wanted)
    if wanted < lengths[0]:
        notes.append(f"the shortest prompt has {lengths[0]} tokens, more than the {wanted} wanted")
    num_words = words_for(wanted, without=lengths[0], with_words=lengths[1], num_words=_PROBE_WORDS)
    return replace(workload, num_words=num_words)


def _checked(report: Report, engine: Engine, workload: Workload, num_requests: int) -> Report:
    """Return the report with a note on how many answers change with the batch size."""
    from llava.engine.self_check import check_batch_sizes

    found = check_batch_sizes(engine, [workload.request(number) for number in range(num_requests)])
    return replace(report, notes=(*report.notes, found.line()))


def _write(report: Report, folder: Path) -> None:
    from llava.serve.bench.report import save_plot

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", report.to_dict())
    try:
        save_plot(report, folder / "bench.png")
    except DependencyError as error:
        note(f"note: no plot: {error}")


def _check(args: argparse.Namespace) -> None:
    from llava.serve.bench.opening import MAX_CONCURRENCY

    checked = [] if args.self_check is None else [args.self_check]
    bounded = (("--concurrency", args.concurrency), ("--rounds", [args.rounds]), ("--self-check", checked))
    for name, values in bounded:
        for value in values:
            if not 1 <= value <= MAX_CONCURRENCY:
                raise UsageError(f"{name} is {value}", remedy=f"It must be 1 to {MAX_CONCURRENCY}.")
    if args.prompt_tokens is not None and args.prompt_tokens < 1:
        raise UsageError(f"--prompt-tokens is {args.prompt_tokens}", remedy="It must be at least 1.")
