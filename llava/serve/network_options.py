"""The options that every server of the original's protocol has: where it listens, and who may ask.

On loopback nobody else can reach a server, and its clients need no key. Anywhere else they do: the shared
token counts as one, so that the original's commands with `--host 0.0.0.0` work on one machine as they are.
"""

from __future__ import annotations

import argparse
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import note
from llava.errors import DependencyError
from llava.serve.http.limits import add_limit_arguments

if TYPE_CHECKING:
    from llava.serve.http.access import Access
    from llava.serve.http.limits import Limits
    from llava.serve.http.running import Listener

DEFAULT_HOST = "localhost"


@dataclass(frozen=True)
class Network:
    """Who may ask a server, and how much."""

    access: Access
    limits: Limits
    token: str
    token_file: Path
    is_anonymous: bool
    """Whether clients off this machine need no key."""


def add_network_arguments(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Declare --host, --port, and who may ask."""
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="where to listen (%(default)s: this machine only)"
    )
    parser.add_argument("--port", type=int, default=port, help="(%(default)s)")
    add_token_argument(parser)
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="a further key for clients; needed by them only where --host is not this machine",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name by which the server may be called",
    )
    parser.add_argument(
        "--allow-anonymous",
        action="store_true",
        help="clients need no key wherever they are (the original's clients know none); workers still do",
    )
    add_limit_arguments(parser)
    add_log_argument(parser)


def add_token_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --token-file."""
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the secret that controller and workers share (default: this user's own, made when missing)",
    )


def add_log_argument(parser: argparse._ActionsContainer) -> None:
    """Declare --log-dir."""
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="write a log file there, a new one every day; no prompts, pictures or clients' addresses "
        "are in it (default: no file)",
    )


def open_log(args: argparse.Namespace, name: str) -> AbstractContextManager[object]:
    """Return what logs into --log-dir, as NAME.log, while it is entered; raises FileError."""
    if args.log_dir is None:
        return nullcontext()
    from llava.log_file import LogFile

    path = args.log_dir / f"{name}.log"
    file = LogFile(path)
    note(f"logging to {path}")
    return file


def require_serving_packages() -> None:
    """Raise DependencyError where a server's packages are missing."""
    for package in ("fastapi", "h11", "httpx", "uvicorn"):
        try:
            __import__(package)
        except ImportError:
            raise DependencyError.of_extra(package, "serve", "a server") from None


def network_of(args: argparse.Namespace, *, free_paths: frozenset[str] = frozenset()) -> Network:
    """Return what the options say; raises FileError for a secret that cannot be used.

    free_paths: routes that check the token themselves.
    """
    from llava.serve.http.access import FREE_PATHS, Access, is_loopback
    from llava.serve.http.limits import Limits
    from llava.serve.http.secret_file import read_secret, shared_token, token_file

    token = shared_token(args.token_file)
    keys = (token,) if args.api_key_file is None else (token, read_secret(args.api_key_file))
    is_open = args.allow_anonymous or (is_loopback(args.host) and args.api_key_file is None)
    access = Access(
        host=args.host,
        allowed_hosts=tuple(args.allow_host),
        keys=() if is_open else keys,
        free_paths=FREE_PATHS | free_paths,
    )
    return Network(
        access=access,
        limits=Limits.with_client_timeout(args.client_timeout_s),
        token=token,
        token_file=token_file(args.token_file),
        is_anonymous=args.allow_anonymous,
    )


def open_listener(args: argparse.Namespace) -> Listener:
    """Listen where the options say; raises UsageError for a port that is taken."""
    from llava.serve.http.running import listen

    return listen(args.host, args.port)


def address_on(host: str, port: int) -> str:
    """Return the address under which a neighbour on this machine, or of a named host, finds a server."""
    from llava.serve.http.access import is_loopback

    name = host.strip("[]")
    if is_loopback(name) or name in ("", "0.0.0.0", "::"):
        return f"http://localhost:{port}"
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def say_where(what: str, listener: socket.socket, network: Network) -> None:
    """Say on stderr that a server is ready, where, and to whom it is open."""
    from llava.serve.http.access import is_loopback
    from llava.serve.http.running import url_of

    note(f"{what} ready at {url_of(listener, network.access.host)}")
    if network.access.keys:
        note(f"clients need a key; the one of this machine is in {network.token_file}")
    elif network.is_anonymous and not is_loopback(network.access.host):
        note("relaxed: whoever reaches this port may ask (--allow-anonymous)")
