"""`llava doctor DATA`: what is wrong with training data, before hours are spent on it.

Exit codes: 0 nothing but notes, 1 errors or warnings were found, 2 the examination could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, note, say
from llava.errors import UsageError

if TYPE_CHECKING:
    from llava.data.doctor.diagnosis import Diagnosis, Preview
    from llava.data.doctor.fix import Fixed
    from llava.data.doctor.tokens import TokenChecker

_DEFAULT_IMAGE_TOKENS: Final = 576
"""Of LLaVA-1.5 and InternVL-Chat V1.0: 336 pixels by 14, squared."""
_COLOURS: Final = {
    "error": "31;1",
    "warning": "33",
    "info": "36",
    "trained": "32",
    "picture": "35",
    "dim": "2",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava doctor`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "data", help="JSON, JSONL, mixture meta, parquet or datasets folder; several with commas between"
    )
    parser.add_argument("--image-folder", metavar="FOLDER", help="where picture names begin")
    parser.add_argument("--model", metavar="CKPT", help="checkpoint whose tokenizer and picture size count")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer alone, instead of --model")
    parser.add_argument("--image-tokens", type=int, metavar="N", help="tokens a picture, with --tokenizer")
    parser.add_argument("--template", default="v1", help="prompt template (default: v1)")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of a sample (default: 2048)")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="PICTURES", help="benchmark pictures or their folders"
    )
    parser.add_argument("--fix", metavar="OUT", help="write a copy without errors (.json or .jsonl)")
    parser.add_argument("--report", metavar="HTML", help="write a page with everything")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--workers", type=int, help="processes for pictures (default: one per CPU, up to 8)")
    parser.add_argument("--max-samples", type=int, metavar="N", help="look at the first N only")
    parser.add_argument("--max-findings", type=int, default=1000, metavar="N", help="listed of each kind")
    parser.add_argument("--debug", action="store_true", help="verbose log")


def run(args: argparse.Namespace) -> int:
    """Examine the data, and write what was asked for."""
    from llava.data.doctor.examine import ExamineOptions, examine
    from llava.data.doctor.fix import check_target, write_fixed
    from llava.data.doctor.report import report
    from llava.data.doctor.sources import data_files
    from llava.files import write_text

    _check(args)
    if args.fix:
        files = data_files(args.data, args.image_folder, lambda *_: None)
        check_target(files, args.data, Path(args.fix))
    tokens = _token_checker(args)
    options = ExamineOptions(
        image_folder=args.image_folder,
        against=tuple(args.against),
        num_workers=_num_workers(args.workers),
        max_samples=args.max_samples,
        keep=args.max_findings,
    )
    with_progress = sys.stderr.isatty() and not args.json
    diagnosis = examine(args.data, options, tokens=tokens, progress=_progress() if with_progress else None)
    if with_progress:
        note("\r\033[K\033[A")
    if args.json:
        say(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        say("\n".join(_lines(diagnosis, is_coloured=_is_coloured())))
    if args.report:
        write_text(Path(args.report), report(diagnosis))
        note(f"report written to {args.report}")
    if args.fix:
        note("\n".join(_fix_lines(write_fixed(diagnosis, Path(args.fix), tokens=tokens), args.image_folder)))
    return EXIT_OK if diagnosis.is_clean else EXIT_WITH_FAILURES


def _check(args: argparse.Namespace) -> None:
    if args.model and args.tokenizer:
        raise UsageError("--model and --tokenizer are both given", remedy="Keep one.")
    if args.image_tokens is not None and not args.tokenizer:
        raise UsageError("--image-tokens goes with --tokenizer", remedy="A checkpoint knows its own number.")
    if args.fix and args.max_samples is not None:
        raise UsageError("--fix needs all samples", remedy="Leave out --max-samples.")
    for name in ("image_tokens", "max_samples", "max_findings"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}", remedy="Use a number from 1 upward.")
    if args.max_length < 2:
        raise UsageError(f"--max-length is {args.max_length}", remedy="Use a number such as 2048.")
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers is {args.workers}", remedy="Use 0 for none, or more.")


def _num_workers(asked: int | None) -> int:
    if asked is not None:
        return asked
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(num_cpus, 8)


def _token_checker(args: argparse.Namespace) -> TokenChecker:
    """Return what encodes samples: by the checkpoint, the tokenizer, or the embedded model."""
    from llava.data.doctor.tokens import TokenChecker
    from llava.demo import embedded_model_path
    from llava.model.assembling import assemble
    from llava.model.checkpoint import recognise
    from llava.model.conventions import add_special_tokens
    from llava.processing.tokenizer import load_tokenizer
    from llava.templates import get_template

    template = get_template(args.template)
    if args.tokenizer:
        number = args.image_tokens or _DEFAULT_IMAGE_TOKENS
        origin = str(args.tokenizer)
        if args.image_tokens is None:
            note(f"a picture is counted as {number} tokens; --image-tokens says otherwise")
        return TokenChecker(load_tokenizer(args.tokenizer), template, number, args.max_length, origin=origin)
    if not args.model:
        note("tokens are those of the embedded model; --model or --tokenizer names yours")
    parts = assemble(recognise(args.model or embedded_model_path()), base=None, image_size=None)
    config = parts.config()
    tokenizer = load_tokenizer(parts.tokenizer_folder)
    add_special_tokens(tokenizer, parts)
    return TokenChecker(
        tokenizer,
        template,
        config.image_seq_length,
        args.max_length,
        im_start_end=config.mm_use_im_start_end,
        origin=str(args.model) if args.model else "the embedded model",
    )


def _progress() -> Callable[[int, int], None]:
    def show(num_samples: int, num_pictures: int) -> None:
        sys.stderr.write(f"\r\033[K{num_samples:,} samples, {num_pictures:,} pictures")
        sys.stderr.flush()

    return show


def _is_coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _lines(diagnosis: Diagnosis, *, is_coloured: bool) -> Iterator[str]:
    """Yield the diagnosis in words."""

    def paint(text: str, name: str) -> str:
        return f"\033[{_COLOURS[name]}m{text}\033[0m" if is_coloured and text else text

    findings = diagnosis.findings
    for code in findings.codes():
        kind, count = findings.of(code)[0].kind, findings.counts[code]
        severity = "note" if kind.severity == "info" else kind.severity
        yield f"{paint(f'{severity:<8}', kind.severity)} {kind.title} ({code}): {count:,}"
        for finding in findings.of(code)[:3]:
            name = f" {finding.id}" if finding.id else ""
            yield paint(f"         {finding.where}{name}", "dim") + f"  {finding.detail}"
        if count > 3:
            yield paint(f"         and {count - 3:,} more", "dim")
        yield paint(f"         {kind.remedy}", "dim")
    if findings.counts:
        yield ""
    if len(diagnosis.lengths):
        yield from _token_lines(diagnosis)
        for preview in diagnosis.previews[:1]:
            yield from _preview_lines(preview, paint, is_coloured=is_coloured)
    seconds = max(diagnosis.seconds, 1e-9)
    yield (
        f"{diagnosis.num_samples:,} samples, {diagnosis.num_pictures:,} pictures in {seconds:.1f} s: "
        f"{findings.num('error'):,} errors, {findings.num('warning'):,} warnings, "
        f"{findings.num('info'):,} notes" + (" (first samples only)" if diagnosis.is_partial else "")
    )


def _token_lines(diagnosis: Diagnosis) -> Iterator[str]:
    lengths = diagnosis.lengths
    yield (
        f"tokens   text {int(lengths.text.sum()):,}, pictures {int(lengths.pictures.sum()):,}, "
        f"trained {int(lengths.targets.sum()):,}; longest sample {int(lengths.total.max()):,}"
    )
    yield "limit    samples cut   samples lost   trained tokens lost"
    for forecast in diagnosis.forecasts:
        mark = "  <- --max-length" if forecast.limit == diagnosis.max_length else ""
        share = forecast.num_targets_lost / max(forecast.num_targets, 1)
        lost = f"{forecast.num_cut:>11,}   {forecast.num_lost:>12,}   {share:>19.2%}"
        yield f"{forecast.limit:<8,} {lost}{mark}"
    yield ""


def _preview_lines(preview: Preview, paint: Callable[[str, str], str], *, is_coloured: bool) -> Iterator[str]:
    meaning = "in colour" if is_coloured else "between [[ and ]]"
    yield f"what is trained ({meaning}), {preview.where}:"
    shown = ""
    for piece in preview.pieces:
        if piece.num_image_tokens:
            shown += paint(f"<picture, {piece.num_image_tokens} tokens>", "picture")
        elif piece.is_trained:
            shown += paint(piece.text, "trained") if is_coloured else f"[[{piece.text}]]"
        else:
            shown += piece.text
    yield from (f"  {line}" for line in shown.split("\n"))
    yield ""


def _fix_lines(fixed: Fixed, image_folder: str | None) -> Iterator[str]:
    yield (
        f"{fixed.num_kept:,} samples written to {fixed.path}, {fixed.num_changed:,} of them changed; "
        f"{fixed.num_dropped:,} dropped"
    )
    yield f"what was done is in {fixed.changes}"
    if image_folder is None and fixed.path.suffix.lower() in (".json", ".jsonl"):
        yield "picture names in it begin where they did: --image-folder says so where it lies elsewhere"
