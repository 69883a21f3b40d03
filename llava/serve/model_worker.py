"""`python -m llava.serve.model_worker`: answers for one model, known to a controller.

The original's options, routes and JSON (llava/serve/model_worker.py there), over any engine of this project:
requests are batched, cached beginnings are taken over, a client that leaves ends its answer. The address of
an OpenAI-compatible server (vLLM, SGLang, llama-server) as --model-path makes that server a worker.
"""

from __future__ import annotations

import argparse
import hashlib
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llava.command import OptionParser, note
from llava.command import run as run_command
from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.engine.model_options import (
    ModelOptions,
    add_engine_arguments,
    add_quantisation_arguments,
    device_map_of,
    device_present,
    load_engine,
)
from llava.engine.names import URL_SCHEMES
from llava.errors import RequestError, UsageError
from llava.serve.heart_beats import HeartBeatOptions, HeartBeats
from llava.serve.network_options import (
    add_network_arguments,
    address_on,
    network_of,
    open_listener,
    open_log,
    require_serving_packages,
    say_where,
)
from llava.serve.protocol import address_of
from llava.serve.request_queue import QueueOptions
from llava.serve.worker import ModelWorker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava.serve.http.running import Listener

DEFAULT_PORT = 21002
DEFAULT_CONTROLLER = "http://localhost:21001"


def create_app(worker: ModelWorker, heart_beats: HeartBeats | None = None) -> FastAPI:
    """Return a worker's routes; `llava.serve.http.stack.protect` puts the layers around them."""
    from llava.serve.worker_routes import routes_of

    return routes_of(worker, heart_beats)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = worker_parser("python -m llava.serve.model_worker", description=__doc__)
    return run_command(lambda: serve(parser.parse_all(words)), is_verbose=True)


def worker_parser(prog: str, *, description: str) -> OptionParser:
    """Return a parser of a worker's options, for this command and those that put something else behind it."""
    parser = OptionParser(prog=prog, description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_network_arguments(parser, port=DEFAULT_PORT)
    _add_controller_arguments(parser)
    _add_model_arguments(parser)
    defaults = QueueOptions()
    parser.add_argument(
        "--limit-model-concurrency",
        type=int,
        default=defaults.max_running,
        metavar="N",
        help="requests given to the engine at a time, which batches them (%(default)s)",
    )
    parser.add_argument(
        "--limit-waiting",
        type=int,
        default=defaults.max_waiting,
        metavar="N",
        help="further requests that may wait; one more is told to come back later (%(default)s)",
    )
    parser.add_argument(
        "--stream-interval", type=int, default=1, help="taken for the original's sake; no effect"
    )
    return parser


def _add_controller_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("controller")
    group.add_argument(
        "--controller-address",
        "--controller",
        default=DEFAULT_CONTROLLER,
        metavar="ADDRESS",
        help="(%(default)s)",
    )
    group.add_argument(
        "--worker-address",
        "--worker",
        metavar="ADDRESS",
        help="where the controller finds this worker (default: --host, or localhost, and --port)",
    )
    group.add_argument("--no-register", action="store_true", help="do not tell any controller")
    group.add_argument("--speed", type=float, default=1.0, help="relative to other workers (%(default)s)")
    group.add_argument(
        "--heart-beat-interval",
        type=float,
        default=WORKER_HEART_BEAT_INTERVAL,
        metavar="SECONDS",
        help="(%(default)s)",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-path",
        metavar="PATH",
        help="checkpoint folder, GGUF file, or the http address of an OpenAI-compatible server "
        "(default: the embedded model)",
    )
    group.add_argument(
        "--model-base", metavar="PATH", help="language model under a projector or LoRA checkpoint"
    )
    group.add_argument(
        "--endpoint-model",
        metavar="NAME",
        help="which of an OpenAI-compatible server's models answers (default: the first that it lists)",
    )
    group.add_argument("--model-name", help="what clients call it (default: from the path)")
    group.add_argument("--device", help="cpu, cuda, mps (default: the best present)")
    group.add_argument("--template", "--conv-mode", metavar="NAME", help="over the checkpoint's")
    add_quantisation_arguments(group)
    add_engine_arguments(group)
    group.add_argument("--multi-modal", action="store_true", help="taken for the original's sake; no effect")
    group.add_argument("--use-flash-attn", action="store_true", help="taken for LLaVA's sake; no effect")


def serve(args: argparse.Namespace) -> int:
    """Answer for one model until a signal ends it; returns the exit code. `args`: of `worker_parser`."""
    require_serving_packages()
    for name in ("multi_modal", "use_flash_attn"):
        if getattr(args, name):
            note(f"note: --{name.replace('_', '-')} has no effect")
    with open_listener(args) as listener, open_log(args, _log_name(listener.getsockname()[1])):
        return _serve_at(listener, args)


def _log_name(port: int) -> str:
    """Return what the original calls a worker's log; the same at every start on this machine and port."""
    place = f"{socket.gethostname()}:{port}"
    return f"model_worker_{hashlib.sha256(place.encode()).hexdigest()[:6]}"


def _serve_at(listener: Listener, args: argparse.Namespace) -> int:
    from llava.serve.client import AsyncServingClient
    from llava.serve.http.lifecycle import Lifecycle
    from llava.serve.http.running import run_server
    from llava.serve.http.stack import protect

    address = _own_address(args, listener.getsockname()[1])
    # The controller calls the worker by this name.
    args.allow_host.append(urlsplit(address).hostname or "localhost")
    network = network_of(args)
    worker = ModelWorker(
        options=QueueOptions(args.limit_model_concurrency, args.limit_waiting), speed=args.speed
    )
    lifecycle = Lifecycle()
    heart_beats = None
    if not args.no_register:
        client = AsyncServingClient(args.controller_address, token=network.token)
        options = HeartBeatOptions(args.heart_beat_interval, min(5.0, args.heart_beat_interval))
        heart_beats = HeartBeats(client, address, worker.status, lifecycle, options)
    return run_server(
        protect(create_app(worker, heart_beats), network.access, limits=network.limits, lifecycle=lifecycle),
        listener,
        lifecycle,
        on_start=lambda: _load(worker, args),
        on_ready=lambda: say_where(f"worker of {', '.join(worker.status().model_names)}", listener, network),
        on_stop=worker.close,
    )


def _own_address(args: argparse.Namespace, port: int) -> str:
    """Return where the controller finds this worker; raises UsageError for an option that is no address."""
    try:
        return address_of({"worker_name": args.worker_address or address_on(args.host, port)})
    except RequestError:
        raise UsageError(
            f"--worker-address {args.worker_address} is not an address",
            remedy="Write it as http://HOST:PORT.",
        ) from None


def _model_options(args: argparse.Namespace) -> ModelOptions:
    is_endpoint = args.model_path is not None and args.model_path.startswith(URL_SCHEMES)
    return ModelOptions(
        path=args.model_path,
        base=args.model_base,
        bits=args.bits,
        device=args.device if is_endpoint else device_present(args.device),
        template=args.template,
        device_map=None if is_endpoint else device_map_of(args.device),
        dtype=args.dtype,
        engine=args.engine,
        endpoint_model=args.endpoint_model,
        endpoint_concurrency=args.limit_model_concurrency if is_endpoint else None,
    )


def _load(worker: ModelWorker, args: argparse.Namespace) -> None:
    """Load the engine and hand it to the worker; runs in a thread of its own."""
    from llava.engine.remote import RemoteEngine

    options = _model_options(args)
    engine = load_engine(options)
    # A server's name for its model is a path too, unless it was told another one.
    path = engine.model_name if isinstance(engine, RemoteEngine) else options.path
    name = args.model_name or _name_of(options, path)
    note(f"model {name}: {engine.name}")
    worker.take(engine, name=name, takes_prompts=not isinstance(engine, RemoteEngine))


def _name_of(options: ModelOptions, path: str | None) -> str:
    """Return what the original calls a model at this path."""
    from llava.mm_utils import get_model_name_from_path

    return options.name if path is None else get_model_name_from_path(path)


if __name__ == "__main__":
    sys.exit(main())
