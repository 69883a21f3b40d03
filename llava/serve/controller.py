"""`python -m llava.serve.controller`: knows the workers, and sends each request to one of them.

The original's options, routes and JSON (llava/serve/controller.py there). Beyond them: workers prove a token
that the processes of one machine share through a private file; conversations stay with the worker that holds
their cache; a worker that is lost in mid-answer costs that answer alone. More in docs/serving.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava.command import OptionParser, note
from llava.command import run as run_command
from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.errors import UsageError
from llava.serve.network_options import (
    add_network_arguments,
    network_of,
    open_listener,
    open_log,
    require_serving_packages,
    say_where,
)
from llava.serve.registry import DISPATCH_METHODS, Registry, RegistryOptions

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from llava.serve.dispatch import DispatchOptions

DEFAULT_PORT = 21001
WORKER_ROUTES = frozenset({"/register_worker", "/unregister_worker", "/receive_heart_beat"})
"""Check the token themselves, since allowed workers may have none."""


def create_app(
    registry: Registry, options: DispatchOptions, *, transport: httpx.AsyncBaseTransport | None = None
) -> FastAPI:
    """Return the controller's routes; `llava.serve.http.stack.protect` puts the layers around them."""
    from llava.serve.controller_routes import routes_of

    return routes_of(registry, options, transport=transport)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _serve_logged(_parser().parse_all(words)), is_verbose=True)


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.serve.controller", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_network_arguments(parser, port=DEFAULT_PORT)
    parser.add_argument(
        "--dispatch-method",
        choices=DISPATCH_METHODS,
        default="shortest_queue",
        help="how a worker is chosen (%(default)s)",
    )
    parser.add_argument(
        "--heart-beat-expiration",
        type=float,
        default=CONTROLLER_HEART_BEAT_EXPIRATION,
        metavar="SECONDS",
        help="a worker that is silent so long is removed (%(default)s)",
    )
    parser.add_argument(
        "--allow-worker",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="let the worker at this address register without the token (a worker of the original)",
    )
    return parser


def _serve_logged(args: argparse.Namespace) -> int:
    with open_log(args, "controller"):
        return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    require_serving_packages()
    from llava.serve.dispatch import DispatchOptions
    from llava.serve.http.lifecycle import Lifecycle
    from llava.serve.http.running import run_server
    from llava.serve.http.stack import protect

    network = network_of(args, free_paths=WORKER_ROUTES)
    registry = Registry(RegistryOptions(dispatch=args.dispatch_method, expiry_s=args.heart_beat_expiration))
    options = DispatchOptions(token=network.token, allowed_workers=_addresses(args.allow_worker))
    app = create_app(registry, options)
    lifecycle = Lifecycle()
    listener = open_listener(args)
    for address in sorted(options.allowed_workers):
        note(f"relaxed: {address} may register without the token (--allow-worker)")
    return run_server(
        protect(app, network.access, limits=network.limits, lifecycle=lifecycle),
        listener,
        lifecycle,
        on_ready=lambda: say_where("controller", listener, network),
    )


def _addresses(given: Sequence[str]) -> frozenset[str]:
    from llava.errors import RequestError
    from llava.serve.protocol import address_of

    try:
        return frozenset(address_of({"worker_name": text}) for text in given)
    except RequestError:
        raise UsageError(
            "--allow-worker is not the address of a worker", remedy="Write it as http://HOST:PORT."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
