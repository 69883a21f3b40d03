"""Options of every command that has questions answered, and what they choose. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Literal
from urllib.parse import urlsplit

from llava.engine.model_options import (
    ModelOptions,
    add_engine_arguments,
    add_quantisation_arguments,
    device_map_of,
    device_present,
)
from llava.engine.names import URL_SCHEMES
from llava.errors import UsageError

DEFAULT_BATCH_SIZE = 16


def add_answering_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the original had not."""
    group = parser.add_argument_group("ours")
    group.add_argument("--device", help="cpu, cuda, mps (default: the best present)")
    add_quantisation_arguments(group)
    add_engine_arguments(group)
    group.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="questions at a time (%(default)s)"
    )
    group.add_argument("--workers", type=int, default=1, help="processes, each with a model (%(default)s)")
    group.add_argument("--gpus", metavar="0,1,...", help="one process on each of these GPUs")
    group.add_argument("--seed", type=int, default=0, help="of a run that samples (%(default)s)")
    group.add_argument(
        "--check-batching", type=int, default=0, metavar="K", help="ask K questions again, one by one"
    )


def devices_of(args: argparse.Namespace) -> list[str | None]:
    """Return the device of each worker; raises UsageError for options that make none."""
    if args.batch_size < 1 or args.workers < 1:
        raise UsageError("--batch-size and --workers must be at least 1")
    if args.gpus is None:
        return [None] * args.workers
    numbers = args.gpus.split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise UsageError(f"--gpus is {args.gpus!r}", remedy="Give numbers with commas, as 0,1.")
    return [f"cuda:{int(number)}" for number in numbers for _ in range(args.workers)]


def model_options_of(
    args: argparse.Namespace,
    *,
    path: str | None,
    template: str | None,
    aspect: Literal["pad", "square"] | None = None,
) -> ModelOptions:
    """Return the model that the options choose."""
    return ModelOptions(
        path=path,
        base=args.model_base,
        bits=args.bits,
        device=device_present(args.device),
        template=template,
        image_aspect=aspect,
        device_map=device_map_of(args.device) if args.gpus is None and args.workers == 1 else None,
        dtype=args.dtype,
        engine=args.engine,
    )


def model_id_of(path: str | None) -> str:
    """Return what answers record as the model: the last part of its path, as the original names it.

    An endpoint is called by its host.
    """
    if path is None:
        return ModelOptions().name
    if path.startswith(URL_SCHEMES):
        return urlsplit(path).netloc.replace(":", "-")
    from llava.mm_utils import get_model_name_from_path

    return get_model_name_from_path(path)
