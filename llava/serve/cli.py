"""`python -m llava.serve.cli`: the original's interactive chat, with its options (llava/serve/cli.py there).

Differs where the original was wrong: picture rules come from the checkpoint unless --image-aspect-ratio is
given, temperature 0 is greedy, history holds no control tokens. `llava chat` does the same with more options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import OptionParser, note
from llava.command import run as run_command
from llava.engine.model_options import (
    ModelOptions,
    add_engine_arguments,
    add_quantisation_arguments,
    device_map_of,
    device_present,
    load_engine,
)
from llava.engine.request import SamplingParams
from llava.serve.chat import chat
from llava.serve.session import Session, open_picture


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _chat(_parser().parse_all(words)), is_verbose="--debug" in words)


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.serve.cli", description=__doc__)
    parser.add_argument(
        "--model-path", metavar="PATH", help="checkpoint folder (default: the embedded model)"
    )
    parser.add_argument(
        "--model-base", metavar="PATH", help="language model under a projector or LoRA checkpoint"
    )
    parser.add_argument("--image-file", required=True, metavar="PATH", help="picture: path or http(s) URL")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best present)")
    parser.add_argument("--conv-mode", metavar="NAME", help="prompt template (default: the checkpoint's)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="(%(default)s)")
    add_quantisation_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="print prompt and answer as they were")
    parser.add_argument("--image-aspect-ratio", choices=("pad", "square"), help="default: the checkpoint's")
    return parser


def _chat(args: argparse.Namespace) -> int:
    options = ModelOptions(
        path=args.model_path,
        base=args.model_base,
        bits=args.bits,
        device=device_present(args.device),
        template=args.conv_mode,
        image_aspect=args.image_aspect_ratio,
        device_map=device_map_of(args.device),
        dtype=args.dtype,
        engine=args.engine,
    )
    sampling = SamplingParams(temperature=args.temperature, max_new_tokens=args.max_new_tokens)
    picture = open_picture(args.image_file, allow_url=True, on_notice=note)
    session = Session(sampling=sampling, waiting=[picture])
    return chat(load_engine(options), session, model=options.name, shows_debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
