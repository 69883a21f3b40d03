"""`llava export MODEL --to FORMAT --output FOLDER`: a checkpoint for other programs, with a parity report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, note, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava export`."""
    parser.description = __doc__
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="hf (plain transformers), gguf (llama.cpp), legacy (the original's), merged (ours, LoRA merged)",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the result")
    parser.add_argument("--model-base", metavar="PATH", help="language model under a projector or LoRA")
    parser.add_argument(
        "--type", default="F16", help="gguf: F16, Q8_0, Q5_K_M, Q4_K_M, or F32 (default: %(default)s)"
    )
    parser.add_argument("--without-tower", action="store_true", help="gguf: write the language model alone")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default: as stored; not for gguf)")
    parser.add_argument("--conv-mode", metavar="NAME", help="prompt template, over the checkpoint's")
    parser.add_argument("--device", help="where source and result are compared (default: the best present)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Export, print the report, and return 1 where a figure is beyond its limit."""
    from llava.export.exporting import ExportOptions, export

    output = Path(args.output)
    report = export(
        ExportOptions(
            model=args.model,
            to=args.to,
            output=output,
            base=args.model_base,
            type=args.type,
            dtype=args.dtype,
            template=args.conv_mode,
            device=args.device,
            tower=not args.without_tower,
            overwrite=args.overwrite,
        )
    )
    if args.json:
        files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
        say(json.dumps(report.to_dict() | {"output": str(output), "files": files}, indent=2))
    else:
        say("\n".join(report.lines()))
        say(f"Wrote {output}.")
    if report.passed:
        return EXIT_OK
    note("The export is not as near to its source as it should be; see the lines that say FAIL.")
    return EXIT_WITH_FAILURES
