"""Which of how many processes this is, and the engine that follows from it.

Started by torchrun (also over several nodes), by Slurm's srun with one task per device, or alone:

    torchrun --nproc_per_node 8 -m llava.train.train ...
    srun --ntasks-per-node 8 --kill-on-bad-exit=1 python -m llava.train.train ...

The variables read are torchrun's RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT,
else Slurm's SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_NODELIST, SLURM_JOB_ID.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from llava.errors import ConfigError, RankError, UsageError
from llava.model.device import resolve_device
from llava.train.config import RunOptions
from llava.train.parallel.ddp import DdpEngine
from llava.train.parallel.engine import Engine
from llava.train.parallel.group import Group
from llava.train.parallel.single import SingleEngine
from llava.train.parallel.watchdog import Watchdog

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST")
_OWN_TO_A_RANK = {"device", "threads"}
"""Options in which ranks may differ."""


@dataclass(frozen=True)
class Placement:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    local_world_size: int = 1
    address: str = ""
    """Machine of rank 0; empty for one process."""
    port: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that contradict each other."""
        for name, number, limit in (
            ("rank", self.rank, self.world_size),
            ("local rank", self.local_rank, self.local_world_size),
        ):
            if not 0 <= number < limit:
                raise UsageError(
                    f"{name} is {number} of {limit}, and must be 0 to {limit - 1}",
                    remedy="Start the run with torchrun or srun, which set both.",
                )


def read_placement(environ: Mapping[str, str]) -> Placement:
    """Read the placement that torchrun or Slurm left in the environment; neither: one process.

    Raises UsageError when variables are missing, no numbers, or contradict each other.
    """
    if "WORLD_SIZE" in environ or "RANK" in environ:
        _require(environ, _TORCHRUN, "torchrun")
        world_size = _number(environ, "WORLD_SIZE")
        local_world_size = (
            _number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else world_size
        )
        return Placement(
            rank=_number(environ, "RANK"),
            world_size=world_size,
            local_rank=_number(environ, "LOCAL_RANK"),
            local_world_size=local_world_size,
            address=environ["MASTER_ADDR"],
            port=_number(environ, "MASTER_PORT"),
        )
    if "SLURM_PROCID" in environ:
        return _read_slurm(environ)
    return Placement()


def _read_slurm(environ: Mapping[str, str]) -> Placement:
    _require(environ, _SLURM, "Slurm")
    # Those of the step, where srun starts fewer tasks than the job has.
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    world_size = _number(environ, tasks)
    if world_size == 1:
        return Placement()
    nodes = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_NODELIST"]
    local_rank = _number(environ, "SLURM_LOCALID")
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    local_world_size = _tasks_here(per_node, _number(environ, "SLURM_NODEID", default=0)) or world_size
    job = _number(environ, "SLURM_JOB_ID", default=0)
    return Placement(
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=max(local_world_size, local_rank + 1),
        address=environ.get("MASTER_ADDR") or first_host(nodes),
        # Below the ports that systems give to outgoing connections, and another one for each job.
        port=_number(environ, "MASTER_PORT", default=15000 + job % 15000),
    )


def first_host(nodes: str) -> str:
    """Return the first name of Slurm's host list: "gpu[03-05,9],login1" gives "gpu03"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
    if first is None:
        raise UsageError(f"SLURM_NODELIST is {nodes!r}, which names no host")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _tasks_here(per_node: str, node: int) -> int:
    """Return how many tasks the node of a number has: "4(x2),3" gives 4, 4 and 3; 0 when it is not said."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", per_node):
        counts += [int(count)] * int(repeat or 1)
    return counts[node] if node < len(counts) else 0


def _require(environ: Mapping[str, str], names: tuple[str, ...], starter: str) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        present = ", ".join(name for name in names if name not in missing)
        raise UsageError(
            f"the environment has {starter}'s {present} and lacks {', '.join(missing)}",
            remedy=f"Start the run with torchrun or srun, or unset {present} for one process.",
        )


def _number(environ: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        raise UsageError(f"the environment variable {name} is {text!r}, and must be a number from 0")
    return int(text)


def rank_device(device: str | None, placement: Placement) -> torch.device:
    """Return the device of this rank: the GPU of its local rank, unless one is all that it sees.

    Raises UsageError when there are fewer GPUs than processes, or several processes for one named device.
    """
    resolved = resolve_device(device)
    if placement.world_size == 1 or resolved.type == "cpu":
        return resolved
    if str(resolved) != "cuda":
        raise UsageError(
            f"device is {device or resolved.type!r} for {placement.world_size} processes",
            remedy="Use --device cuda or --device cpu with several processes.",
        )
    num_visible = torch.cuda.device_count()
    # Slurm can bind one GPU to each task, which then sees that one only.
    index = 0 if num_visible == 1 and "SLURM_PROCID" in os.environ else placement.local_rank
    if index >= num_visible:
        raise UsageError(
            f"this machine runs {placement.local_world_size} processes and has {num_visible} GPU(s)",
            remedy=f"Start {num_visible} per machine: torchrun --nproc_per_node {num_visible}.",
        )
    return torch.device("cuda", index)


def join(placement: Placement, *, device: torch.device, timeout_s: float) -> Group:
    """Enter the process group; a collective that takes longer than `timeout_s` ends the run.

    Raises RankError when the others cannot be reached.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if placement.world_size == 1:
        # Sharding engines want a group even of one.
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return Group(device=device, watchdog=None)
    where = f"tcp://{placement.address}:{placement.port}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun's agent already holds the port.
        where = "env://"
    try:
        dist.init_process_group(
            backend, init_method=where, rank=placement.rank, world_size=placement.world_size, timeout=timeout
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {placement.rank} of {placement.world_size} cannot meet the others at "
            f"{placement.address}:{placement.port}: {str(error).splitlines()[0]}",
            remedy="See that all were started, the machines reach each other, and the port is free.",
        ) from error
    # Later than the collectives' own timeout, which raises an error that names more.
    return Group(device=device, watchdog=Watchdog(1.1 * timeout_s + 1, rank=placement.rank))


def make_engine(run: RunOptions, *, environ: Mapping[str, str] | None = None) -> Engine:
    """Enter the process group of this run and return the engine that `run` asks for, not yet prepared.

    Raises UsageError for a start that cannot work, ConfigError for options that contradict each other,
    RankError when the other ranks are not there, DependencyError without DeepSpeed.
    """
    name = engine_name(run)
    placement = read_placement(os.environ if environ is None else environ)
    device = rank_device(run.device, placement)
    _set_threads(run.threads, placement, device)
    if name == "ddp" and placement.world_size == 1:
        return SingleEngine(device)
    group = join(placement, device=device, timeout_s=run.hang_timeout_s)
    _check_agreement(group, run)
    return engine_in(group, run)


def engine_in(group: Group, run: RunOptions) -> Engine:
    """Return the engine that `run` asks for, as a rank of `group`; raises as `make_engine`."""
    name = engine_name(run)
    if name == "ddp":
        return DdpEngine(group)
    if name == "fsdp":
        from llava.train.parallel.fsdp import FsdpEngine

        return FsdpEngine(group)
    from llava.train.parallel.deepspeed_config import read_deepspeed
    from llava.train.parallel.deepspeed_engine import DeepSpeedEngine, require_deepspeed

    require_deepspeed(group.device)
    assert run.deepspeed is not None
    return DeepSpeedEngine(group, read_deepspeed(run.deepspeed))


def engine_name(run: RunOptions) -> str:
    """Return "ddp", "fsdp" or "deepspeed"; raises ConfigError when engine and file contradict each other."""
    name = run.engine
    if name == "auto":
        name = "deepspeed" if run.deepspeed else "ddp"
    if name == "deepspeed" and not run.deepspeed:
        raise ConfigError(
            "run.engine is 'deepspeed', and run.deepspeed names no file",
            remedy="Give one, as scripts/zero2.json.",
        )
    if name != "deepspeed" and run.deepspeed:
        raise ConfigError(
            f"run.engine is {name!r}, and run.deepspeed names {run.deepspeed}",
            remedy="Leave one of them out.",
        )
    return name


def _set_threads(threads: int | None, placement: Placement, device: torch.device) -> None:
    if threads is None:
        if device.type != "cpu" or placement.local_world_size == 1 or "OMP_NUM_THREADS" in os.environ:
            return
        threads = max(1, (os.cpu_count() or 1) // placement.local_world_size)
    if threads < 1:
        raise ConfigError(f"run.threads is {threads}, and must be 1 or more")
    torch.set_num_threads(threads)


def _check_agreement(group: Group, run: RunOptions) -> None:
    """Raise UsageError on every rank when one was started with other options: they would wait for ever."""
    own = {key: value for key, value in asdict(run).items() if key not in _OWN_TO_A_RANK}
    first = group.broadcast(own)
    other = [key for key, value in own.items() if value != first[key]]
    if group.any(bool(other)):
        detail = f": {other[0]} is {own[other[0]]!r} here and {first[other[0]]!r} on rank 0" if other else ""
        raise UsageError(
            f"the ranks were started with different options{detail} (this is rank {group.rank})",
            remedy="Give every rank the same command.",
        )
