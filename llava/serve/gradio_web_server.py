"""`python -m llava.serve.gradio_web_server`: the web page over the workers of a controller.

The original's options (llava/serve/gradio_web_server.py there). Unlike the original, nothing that is asked or
answered is logged unless --log-conversations says where, and it listens on this machine only unless told
otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OptionParser, note
from llava.command import run as run_command
from llava.errors import UsageError
from llava.serve.network_options import (
    add_network_arguments,
    network_of,
    open_listener,
    open_log,
    require_serving_packages,
    say_where,
)

DEFAULT_PORT = 7860
"""gradio's, as in the original."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _serve_logged(_parser().parse_all(words)), is_verbose=True)


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.serve.gradio_web_server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_network_arguments(parser, port=DEFAULT_PORT)
    parser.add_argument(
        "--controller-url",
        "--controller",
        default="http://localhost:21001",
        metavar="URL",
        help="where the controller is (%(default)s)",
    )
    parser.add_argument(
        "--concurrency-count",
        type=int,
        default=16,
        metavar="N",
        help="answers that are asked for at the same time; more wait (%(default)s)",
    )
    parser.add_argument(
        "--model-list-mode",
        choices=("once", "reload"),
        default="once",
        help="ask for the models once, or whenever a page is loaded (%(default)s)",
    )
    parser.add_argument("--embed", action="store_true", help="leave out title and terms, for a frame")
    parser.add_argument(
        "--moderate", action="store_true", help="ask OpenAI about each question (OPENAI_API_KEY)"
    )
    parser.add_argument(
        "--log-conversations",
        type=Path,
        metavar="FOLDER",
        help="log dialogues, pictures and addresses there (default: nothing is logged)",
    )
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    return parser


def _serve_logged(args: argparse.Namespace) -> int:
    with open_log(args, "gradio_web_server"):
        return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    if args.share:
        raise UsageError(
            "--share would show this page to everybody through a server of gradio's",
            remedy="Listen with --host and give people the key, or put a proxy with TLS before it.",
        )
    if args.concurrency_count < 1:
        raise UsageError(f"--concurrency-count is {args.concurrency_count}", remedy="Give 1 or more.")
    require_serving_packages()
    from llava.serve.client import AsyncServingClient
    from llava.serve.http.lifecycle import Lifecycle
    from llava.serve.http.running import run_server
    from llava.serve.http.stack import new_app, protect
    from llava.serve.web.backend import ControllerBackend
    from llava.serve.web.mounting import import_gradio, mount_page

    import_gradio()
    from llava.serve.web.events import PageOptions

    network = network_of(args)
    _check_controller(args.controller_url, network.token)
    backend = ControllerBackend(AsyncServingClient(args.controller_url, token=network.token))
    options = PageOptions(args.model_list_mode, is_embedded=args.embed, concurrency=args.concurrency_count)
    app = mount_page(new_app(), backend, options, log_folder=args.log_conversations, moderate=args.moderate)
    lifecycle = Lifecycle()
    listener = open_listener(args)
    if args.log_conversations is not None:
        note(f"relaxed: dialogues, pictures and addresses are logged in {args.log_conversations}")
    return run_server(
        protect(app, network.access, limits=network.limits, lifecycle=lifecycle),
        listener,
        lifecycle,
        on_ready=lambda: say_where("web page", listener, network),
    )


def _check_controller(address: str, token: str) -> None:
    """Raise RemoteError where no controller answers, as the original ends there too."""
    from llava.serve.client import ServingClient

    with ServingClient(address, token=token) as client:
        client.refresh()
        note(f"models: {', '.join(client.models()) or 'none yet'}")


if __name__ == "__main__":
    sys.exit(main())
