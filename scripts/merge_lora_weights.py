"""Merge a LoRA (or projector-only) checkpoint into its base and save the whole model (the original's script).

    python scripts/merge_lora_weights.py --model-path LORA --model-base BASE --save-model-path OUT

The kind is recognised from the files, not from the folder's name; the result is safetensors with tokenizer
and vision tower inside. --model-base may be left out where adapter_config.json names a base that is here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import OptionParser, say
from llava.command import run as run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _run(_parser().parse_all(argv)))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python scripts/merge_lora_weights.py", description=__doc__)
    parser.add_argument("--model-path", required=True, metavar="PATH", help="adapter folder")
    parser.add_argument("--model-base", metavar="PATH", help="base (default: the adapter's own word)")
    parser.add_argument("--save-model-path", required=True, metavar="PATH", help="new folder for the result")
    parser.add_argument("--conv-mode", metavar="NAME", help="prompt template to note in the result")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default: the base's)")
    return parser


def _run(args: argparse.Namespace) -> int:
    from llava.model.merging import merge

    dtype = merge(
        args.model_path,
        args.save_model_path,
        base=args.model_base,
        template=args.conv_mode,
        dtype=args.dtype,
    )
    say(f"Wrote {args.save_model_path} in {str(dtype).removeprefix('torch.')}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
