"""Several processes from one command, and a log of what they say.

`llava train RECIPE --nproc 8` starts what torchrun would, with the same variables. Unlike torchrun it
lets a run that is told to stop save for as long as it takes, and ends mistakes with their own exit code.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llava.command import note
from llava.errors import UsageError

POLL_S = 0.1
GRACE_S = 10.0
"""How long the others may go on after one has failed."""


@dataclass(frozen=True)
class Launch:
    """How many processes, on which machines."""

    nproc: int = 1
    """Processes on this machine."""
    nnodes: int = 1
    """Machines."""
    node_rank: int = 0
    """Which of them this is, from 0."""
    master_addr: str | None = None
    """Name of machine 0; needed for more than one."""
    master_port: int | None = None
    """None: a free one for one machine, 29500 for several."""

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that contradict each other."""
        if self.nproc < 1 or self.nnodes < 1:
            raise UsageError(
                f"--nproc {self.nproc} --nnodes {self.nnodes} start nothing", remedy="Give 1 or more."
            )
        if not 0 <= self.node_rank < self.nnodes:
            raise UsageError(
                f"--node_rank is {self.node_rank} of {self.nnodes} machines", remedy="Count machines from 0."
            )
        if self.nnodes > 1 and not self.master_addr:
            raise UsageError("--master_addr is missing", remedy="Name machine 0, the same on every machine.")

    @property
    def world_size(self) -> int:
        """Processes of the whole run."""
        return self.nproc * self.nnodes


def run_processes(launch: Launch, command: Sequence[str]) -> int:
    """Run `command` once for each process of this machine, with torchrun's variables; returns the exit code.

    SIGTERM is passed on, and the processes get all the time they need to save. When one fails, the others,
    which would wait for it, are ended, and its exit code is the result.
    """
    port = launch.master_port or (29500 if launch.nnodes > 1 else _free_port())
    children: list[subprocess.Popen[bytes]] = []
    with _passing_on(children) as told:
        for local_rank in range(launch.nproc):
            environment = {**os.environ, **_variables(launch, local_rank, port)}
            children.append(subprocess.Popen(list(command), env=environment))
            if told:  # while they were started
                children[-1].send_signal(told[0])
        code = _wait(children)
    return code


def _variables(launch: Launch, local_rank: int, port: int) -> dict[str, str]:
    values = {
        "RANK": launch.node_rank * launch.nproc + local_rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": launch.nproc,
        "MASTER_ADDR": launch.master_addr or "127.0.0.1",
        "MASTER_PORT": port,
        # Processes that all take every core are slower than one.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // launch.nproc)),
    }
    return {name: str(value) for name, value in values.items()}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass SIGTERM on to the children; Ctrl-C they get from the terminal themselves.

    Yields a list that holds SIGTERM once it has come.
    """
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or for the first that fails; returns 0 or that one's exit code."""
    while True:
        codes = [child.poll() for child in children]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return _end(children, failed[0])
        if None not in codes:
            return 0
        time.sleep(POLL_S)


def _end(children: Sequence[subprocess.Popen[bytes]], failed: int) -> int:
    """End the others, which may still be saying why they fail too; returns the failed one's exit code."""
    deadline = time.monotonic() + GRACE_S
    for child in children:
        try:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    code = children[failed].returncode
    if code < 0:
        name = signal.Signals(-code).name
        note(f"process {failed} of this machine was ended by {name}; the others are stopped")
    return code if code > 0 else 128 - code


def keep_log(path: Path) -> None:
    """Let everything this process and its children write from now on also go to the end of `path`.

    The exit code stays this process's own, which a pipe to tee would hide.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()  # a folder that cannot be written is an error here, not tee's
    sys.stdout.flush()
    sys.stderr.flush()
    # In a session of its own: Ctrl-C is for the run, and what it says while it ends is still logged.
    tee = subprocess.Popen(["tee", "-a", str(path)], stdin=subprocess.PIPE, start_new_session=True)
    assert tee.stdin is not None
    for descriptor in (1, 2):
        os.dup2(tee.stdin.fileno(), descriptor)
    tee.stdin.close()


def world_size_of(environ: Mapping[str, str]) -> int:
    """Return how many processes the run has that this one belongs to, as torchrun or Slurm says; else 1."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return 1


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether this process speaks for its run: the first, or the only one."""
    return environ.get("RANK", environ.get("SLURM_PROCID", "0")) == "0"
