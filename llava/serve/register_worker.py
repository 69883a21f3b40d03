"""`python -m llava.serve.register_worker`: tell a controller about a worker, as the original's command does.

The controller asks the worker for its status. A controller can be a worker of another one. A server that
has only the OpenAI-compatible API (vLLM, SGLang, llama-server) is none: the error then names the command that
puts a worker in front of it.
"""

from __future__ import annotations

import argparse
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from llava.command import EXIT_OK, OptionParser
from llava.command import run as run_command
from llava.errors import RegistrationError, RemoteError, ReportedError, RequestError, TooLargeError
from llava.serve.network_options import add_token_argument, require_serving_packages
from llava.serve.protocol import Registration, address_of

_PATIENCE_S = 5.0
"""For an answer of what was taken for a worker."""
_WANTS_KEY = (401, 403)


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
        try:
            client.register(Registration(worker, args.check_heart_beat, None))
        except ReportedError as error:
            server = _openai_server_at(worker) if error.code == RegistrationError.code else None
            if server is None:
                raise
            raise _no_worker(args, worker, server) from None
    return EXIT_OK


class _OpenAiServer(NamedTuple):
    """A server of the OpenAI-compatible API alone."""

    kind: str
    """What it calls itself ("vllm", "sglang", "llamacpp"); "" where it does not say."""
    model: str
    """The first model that it lists; "" where it wants a key."""


def _openai_server_at(address: str) -> _OpenAiServer | None:
    """Look whether what answers at an address is an OpenAI-compatible server and no worker."""
    from llava.engine.remote import RemoteEngine, RemoteOptions
    from llava.serve.client import ServingClient

    # Without the key of OPENAI_API_KEY: nobody said that this is the server that it is for.
    options = RemoteOptions(num_retries=0, connect_timeout_s=_PATIENCE_S, token_timeout_s=_PATIENCE_S)
    try:
        engine = RemoteEngine(address, options=options)
    except RemoteError as error:
        if error.status not in _WANTS_KEY:
            return None
    else:
        found = _OpenAiServer(engine.server, engine.model_name)
        engine.close()
        return found
    with ServingClient(address) as client:
        try:
            client.status()
        except (RemoteError, RequestError, TooLargeError):
            return _OpenAiServer("", "")
        except ReportedError:
            # A worker or controller of ours, which wants its token on every route.
            return None
    return None


def _no_worker(args: argparse.Namespace, address: str, server: _OpenAiServer) -> RegistrationError:
    """Return the error for an OpenAI-compatible server, with the command that makes it a worker."""
    from llava.engine.http_endpoint import base_address
    from llava.serve.http.access import is_loopback
    from llava.serve.model_worker import DEFAULT_PORT

    if server.kind == "sglang":
        words = ["python", "-m", "llava.serve.sglang_worker", "--sgl-endpoint", address]
    else:
        endpoint = base_address(address, default_path="/v1")
        words = ["python", "-m", "llava.serve.model_worker", "--model-path", endpoint]
    words += ["--controller-address", args.controller_address]
    if not is_loopback(urlsplit(args.controller_address).hostname or ""):
        # The controller is elsewhere, and has to find the worker here.
        here = f"http://{socket.gethostname()}:{DEFAULT_PORT}"
        words += ["--host", "0.0.0.0", "--worker-address", here]
    if args.token_file is not None:
        words += ["--token-file", str(args.token_file)]
    what = f"{server.kind or 'it'} serves {server.model}" if server.model else "it wants an API key"
    first = "Start" if server.model else "Put its key into OPENAI_API_KEY and start"
    return RegistrationError(
        f"{address} is an OpenAI-compatible server and no worker ({what}): it answers /v1/models and not "
        "/worker_get_status",
        remedy=f"{first} a worker in front of it: {shlex.join(words)}",
    )


if __name__ == "__main__":
    sys.exit(main())
