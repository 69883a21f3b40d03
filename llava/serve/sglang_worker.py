"""`python -m llava.serve.sglang_worker`: puts an SGLang server behind a controller.

The original's command (llava/serve/sglang_worker.py there) with its options, and all of model_worker's. The
server is asked by its OpenAI-compatible API, so that vLLM and llama-server can be behind --sgl-endpoint too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import run as run_command
from llava.engine.names import URL_SCHEMES
from llava.errors import UsageError
from llava.serve.model_worker import serve, worker_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = worker_parser("python -m llava.serve.sglang_worker", description=__doc__)
    parser.add_argument(
        "--sgl-endpoint",
        metavar="ADDRESS",
        help="of the SGLang server (http://127.0.0.1:30000); --model-path is then the model's path there, "
        "for a server that has several",
    )
    return run_command(lambda: serve(_with_endpoint(parser.parse_all(words))), is_verbose=True)


def _with_endpoint(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options as model_worker means them; raises UsageError where no server is named, or two."""
    if args.sgl_endpoint is None:
        args.sgl_endpoint, args.model_path = args.model_path, None
    if args.sgl_endpoint is None or not args.sgl_endpoint.startswith(URL_SCHEMES):
        raise UsageError(
            "no SGLang server is named"
            if args.sgl_endpoint is None
            else f"{args.sgl_endpoint} is not the address of an SGLang server",
            remedy="Give it as --sgl-endpoint http://HOST:PORT.",
        )
    if args.model_path is not None and (args.endpoint_model or args.model_path.startswith(URL_SCHEMES)):
        raise UsageError(
            "--sgl-endpoint, --model-path and --endpoint-model name more than one server or model",
            remedy="Give the server's address as --sgl-endpoint alone, and one name of a model.",
        )
    args.endpoint_model = args.endpoint_model or args.model_path
    args.model_path = args.sgl_endpoint
    return args


if __name__ == "__main__":
    sys.exit(main())
