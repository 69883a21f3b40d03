"""The options of `llava serve --ray`: which cluster, how many replicas, and what each of them takes."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from llava.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How a model runs on a Ray cluster."""

    address: str | None = None
    """HOST:PORT of the cluster's head, or "auto" for the one of this machine; None starts one."""
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing: int = 8
    """Replicas are added while they have more requests than this each, and taken away while fewer."""
    max_running: int = 32
    """Answers of one replica at the same time; further requests go to others, or wait."""
    num_cpus: float = 1.0
    """That Ray sets aside for a replica."""
    num_gpus: float | None = None
    """That Ray sets aside for a replica, which sees no others; None is one where the cluster has GPUs."""

    def __post_init__(self) -> None:
        for name, low in (("min_replicas", 1), ("target_ongoing", 1), ("max_running", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", remedy=f"It must be at least {low}.")
        if self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"max_replicas is {self.max_replicas}, min_replicas {self.min_replicas}",
                remedy="Give at least as many --max-replicas.",
            )
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value!r}", remedy="It must be at least 0.")
        if self.num_gpus is not None and self.num_gpus > 1 and self.num_gpus % 1:
            raise ConfigError(
                f"num_gpus is {self.num_gpus!r}", remedy="Give a whole number, or a part of one."
            )


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --ray and the options that go with it."""
    group = parser.add_argument_group("several machines (extra 'ray')")
    default = RayOptions()
    group.add_argument(
        "--ray", action="store_true", help="run the models as replicas on a Ray cluster, or a local one"
    )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="the cluster's head, or auto for the one of this machine; implies --ray",
    )
    for name, what in {
        "min_replicas": "of each model",
        "max_replicas": "of each model under load (default: as many as --min-replicas)",
        "target_ongoing": f"requests of a replica at which there are enough ({default.target_ongoing})",
    }.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=what)
    group.add_argument(
        "--replica-cpus", type=float, metavar="N", help=f"CPUs of a replica ({default.num_cpus:g})"
    )
    group.add_argument(
        "--replica-gpus",
        type=float,
        metavar="N",
        help="GPUs of a replica, or a part of one (1 where the cluster has any, unless --device is another)",
    )


def ray_options_of(args: argparse.Namespace) -> RayOptions | None:
    """Return what the options say, None without --ray; raises ConfigError."""
    given = {
        "address": args.ray_address,
        "min_replicas": args.min_replicas,
        "max_replicas": args.max_replicas,
        "target_ongoing": args.target_ongoing,
        "num_cpus": args.replica_cpus,
        "num_gpus": args.replica_gpus,
    }
    stated = {name: value for name, value in given.items() if value is not None}
    if not (args.ray or args.ray_address):
        if stated:
            raise ConfigError(
                f"{', '.join(sorted(stated))} without a cluster", remedy="Add --ray or --ray-address."
            )
        return None
    device = None if args.device == "auto" else args.device
    _check_device(device, args.replica_gpus)
    defaults = {
        "max_replicas": 1 if args.min_replicas is None else args.min_replicas,
        "max_running": args.max_running,
        "num_gpus": None if device is None else float(_is_cuda(device)),
    }
    return RayOptions(**{name: value for name, value in {**defaults, **stated}.items() if value is not None})


def _is_cuda(device: str) -> bool:
    return device.split(":")[0] == "cuda"


def _check_device(device: str | None, num_gpus: float | None) -> None:
    """Raise ConfigError for a device that a replica cannot have, or GPUs that it would not use."""
    if device is None:
        return
    if _is_cuda(device) and device not in ("cuda", "cuda:0"):
        raise ConfigError(
            f"device is {device!r} with --ray", remedy="Ray chooses the GPU of a replica: give --device cuda."
        )
    if num_gpus is not None and _is_cuda(device) != (num_gpus > 0):
        raise ConfigError(
            f"device is {device!r} and --replica-gpus {num_gpus:g}", remedy="Leave one of the two out."
        )
