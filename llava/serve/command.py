"""`llava serve [MODEL ...]`: models behind one address, with an OpenAI-compatible API.

Without a MODEL, the one inside the package. Listens on this machine only unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import note, say
from llava.engine.model_options import (
    ModelOptions,
    add_engine_arguments,
    add_quantisation_arguments,
    load_engine,
)
from llava.errors import DependencyError
from llava.serve.http.limits import add_limit_arguments
from llava.serve.network_options import add_log_argument, open_log
from llava.serve.ray_options import add_ray_arguments, ray_options_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava.serve.application import MountPage, ServeOptions
    from llava.serve.ray_options import RayOptions
    from llava.serve.request_queue import QueueOptions
    from llava.serve.served import ServedModels

DEFAULT_PORT = 8000
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
_PACKAGES = ("fastapi", "uvicorn", "httpx", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `llava serve`."""
    parser.description = __doc__
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="checkpoint folder, GGUF file, hub id or address, or NAME=MODEL to give it a name",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (%(default)s: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, help=f"the port, or an error; by default {DEFAULT_PORT}, or a free one"
    )
    add_engine_arguments(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best present)")
    add_quantisation_arguments(parser)
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key-file",
        type=Path,
        help="private file with the key that clients must send; off this machine a key is always needed, "
        "and drawn where no file is given",
    )
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further host name that the server is called by, and whose pages may call it; may be repeated",
    )
    access.add_argument(
        "--allow-urls", action="store_true", help="fetch pictures from addresses of the public internet"
    )
    load = parser.add_argument_group("load")
    load.add_argument("--max-running", type=int, help="answers of one model, or replica, at a time")
    load.add_argument("--max-waiting", type=int, help="requests that may wait for one model")
    load.add_argument(
        "--drain-s", type=float, help="seconds that running requests have after a signal to stop"
    )
    add_limit_arguments(load)
    _add_page_arguments(parser)
    add_ray_arguments(parser)
    add_log_argument(parser)
    parser.add_argument("--json", action="store_true", help="print address, models and key file as JSON")


def _add_page_arguments(parser: argparse.ArgumentParser) -> None:
    page = parser.add_argument_group("page")
    page.add_argument("--no-page", action="store_true", help="leave the web page out")
    page.add_argument(
        "--log-conversations",
        type=Path,
        metavar="FOLDER",
        help="log the page's dialogues, pictures and addresses there (default: nothing is logged)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise DependencyError.of_extra(package, "serve", "llava serve")
    with open_log(args, "llava_serve"):
        return serve(args, mount_page=_page(args))


def _page(args: argparse.Namespace) -> MountPage | None:
    """Return what mounts the web page; None where it is not wanted."""
    if args.no_page:
        return None
    from llava.serve.web.mounting import mount_page

    def mount(app: FastAPI, models: ServedModels) -> FastAPI:
        from llava.serve.web.backend import LocalBackend

        return mount_page(app, LocalBackend(models), log_folder=args.log_conversations)

    return mount


def serve(args: argparse.Namespace, *, mount_page: MountPage | None = None) -> int:
    """Listen, load the models in order, say where they are, and answer until a signal comes."""
    from llava.serve.application import create_app
    from llava.serve.http.lifecycle import Lifecycle
    from llava.serve.http.running import DEFAULT_DRAIN_S, RunOptions, listen, run_server, url_of
    from llava.serve.ray_cluster import join_cluster
    from llava.serve.served import ServedModels

    named = name_models(args.models)
    key_file = _key_file(args)
    options = _options(args, key_file)
    ray = ray_options_of(args)
    models = ServedModels(_queue_options(args, ray))
    lifecycle = Lifecycle()
    app = create_app(models, lifecycle, options, mount_page=mount_page)
    port = DEFAULT_PORT if args.port is None else args.port
    with listen(args.host, port, or_free=args.port is None) as listener:
        url = url_of(listener, args.host)
        if ray is not None:
            # Ray sets signal handlers of its own, over which `run_server` sets the server's.
            join_cluster(ray)
        return run_server(
            app,
            listener,
            lifecycle,
            options=RunOptions(options.limits, DEFAULT_DRAIN_S if args.drain_s is None else args.drain_s),
            on_start=lambda: _load(named, models, args, ray),
            on_ready=lambda: _announce(url, [model.name for model in models], key_file, as_json=args.json),
            on_stop=models.close if ray is None else lambda: _leave(models),
        )


def name_models(given: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return (name, path) of each MODEL argument; without any, the embedded model's, whose path is None."""
    if not given:
        return [(ModelOptions().name, None)]
    matches = [(_NAMED.fullmatch(text), text) for text in given]
    return [
        (match[1], match[2]) if match is not None else (ModelOptions(path=text).name, text)
        for match, text in matches
    ]


def _load(
    named: Sequence[tuple[str, str | None]],
    models: ServedModels,
    args: argparse.Namespace,
    ray: RayOptions | None,
) -> None:
    from llava.serve.ray_cluster import deploy

    for name, path in named:
        note(f"loading {name}")
        options = ModelOptions(
            path=path, engine=args.engine, device=args.device, dtype=args.dtype, bits=args.bits
        )
        models.add(name, load_engine(options) if ray is None else deploy(name, options, ray))


def _leave(models: ServedModels) -> None:
    from llava.serve.ray_cluster import leave_cluster

    models.close()
    leave_cluster()


def _key_file(args: argparse.Namespace) -> Path | None:
    """Return where the key is; None on this machine, where none is needed unless one was given."""
    from llava.serve.http.access import is_loopback
    from llava.serve.http.secret_file import state_folder

    given: Path | None = args.api_key_file
    if given is not None or is_loopback(args.host):
        return given
    return state_folder() / "api-key"


def _options(args: argparse.Namespace, key_file: Path | None) -> ServeOptions:
    from llava.serve.application import ServeOptions
    from llava.serve.http.access import Access
    from llava.serve.http.limits import Limits
    from llava.serve.http.secret_file import read_or_create
    from llava.serve.openai.messages import PromptLimits
    from llava.serve.openai.pictures import PictureLimits

    keys = () if key_file is None else (read_or_create(key_file),)
    return ServeOptions(
        access=Access(host=args.host, allowed_hosts=tuple(args.allow_host), keys=keys),
        limits=Limits.with_client_timeout(args.client_timeout_s),
        prompt=PromptLimits(PictureLimits(allow_urls=args.allow_urls)),
    )


def _queue_options(args: argparse.Namespace, ray: RayOptions | None) -> QueueOptions:
    from llava.serve.request_queue import QueueOptions

    max_running = args.max_running if ray is None else ray.max_running * ray.max_replicas
    given = {"max_running": max_running, "max_waiting": args.max_waiting}
    return QueueOptions(**{name: value for name, value in given.items() if value is not None})


def _announce(url: str, names: Sequence[str], key_file: Path | None, *, as_json: bool) -> None:
    if as_json:
        facts = {"url": url, "models": list(names), "key_file": None if key_file is None else str(key_file)}
        say(json.dumps(facts))
        return
    say(url)
    if key_file is not None:
        note(f"the key is in {key_file}; clients send it as Authorization: Bearer KEY")
