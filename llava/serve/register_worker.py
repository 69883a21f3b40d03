"""`python -m llava.serve.register_worker`: tell a controller about a worker, as the original's command does.

The controller asks the worker for its status. A controller can be a worker of another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import EXIT_OK, OptionParser
from llava.command import run as run_command
from llava.serve.network_options import add_token_argument, require_serving_packages
from llava.serve.protocol import Registration, address_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _register(_parser().parse_all(words)))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.serve.register_worker", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--controller-address", "--controller", required=True, metavar="ADDRESS")
    parser.add_argument("--worker-name", required=True, metavar="ADDRESS", help="where the worker is")
    parser.add_argument(
        "--check-heart-beat", action="store_true", help="remove the worker when it sends no heartbeats"
    )
    add_token_argument(parser)
    return parser


def _register(args: argparse.Namespace) -> int:
    require_serving_packages()
    from llava.serve.client import ServingClient
    from llava.serve.http.secret_file import shared_token

    worker = address_of({"worker_name": args.worker_name})
    with ServingClient(args.controller_address, token=shared_token(args.token_file)) as client:
        client.register(Registration(worker, args.check_heart_beat, None))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
