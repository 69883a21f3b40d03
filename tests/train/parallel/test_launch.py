"""Who this process is, from torchrun's or Slurm's environment, and what ends a run whose ranks fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from llava.errors import ConfigError, RankError, UsageError
from llava.train.config import RunOptions
from llava.train.parallel.launch import (
    Placement,
    engine_name,
    first_host,
    join,
    make_engine,
    rank_device,
    read_placement,
)
from llava.train.parallel.single import SingleEngine

ROOT = Path(__file__).parents[3]
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "gpu[07-08],other",
    "SLURM_TASKS_PER_NODE": "3(x2)",
    "SLURM_JOB_ID": "31415",
}


def test_torchrun_says_who_this_is() -> None:
    expected = Placement(rank=5, world_size=8, local_rank=1, local_world_size=4, address="gpu01", port=29500)
    assert read_placement({**TORCHRUN, **SLURM}) == expected


def test_slurm_says_who_this_is_and_the_job_gives_the_port() -> None:
    found = read_placement(SLURM)
    assert found == Placement(
        rank=3, world_size=6, local_rank=0, local_world_size=3, address="gpu07", port=15000 + 31415 % 15000
    )
    assert found.port != read_placement({**SLURM, "SLURM_JOB_ID": "31416"}).port


def test_slurm_with_one_task_or_nothing_is_one_process() -> None:
    assert read_placement({**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == Placement()
    assert read_placement({}) == Placement()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("a1,b2", "a1"),
        ("rack[1-2]node[4,6]", "rack1node4"),
        ("gpu[7]", "gpu7"),
    ],
)
def test_the_first_host_of_slurms_list_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**TORCHRUN, "RANK": "8"}, "rank is 8 of 8"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "local rank is 4 of 4"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "lacks SLURM_LOCALID, SLURM_NODELIST"),
        ({**SLURM, "SLURM_NODELIST": ","}, "names no host"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_placement(environ)


def test_one_process_trains_without_a_group() -> None:
    engine = make_engine(RunOptions(device="cpu"), environ={})
    assert isinstance(engine, SingleEngine)
    assert (engine.rank, engine.world_size, engine.device.type) == (0, 1, "cpu")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (RunOptions(), "ddp"),
        (RunOptions(deepspeed="zero2.json"), "deepspeed"),
        (RunOptions(engine="fsdp"), "fsdp"),
    ],
)
def test_auto_takes_deepspeed_where_a_file_is_given(run: RunOptions, name: str) -> None:
    assert engine_name(run) == name


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (RunOptions(engine="deepspeed"), "names no file"),
        (RunOptions(engine="fsdp", deepspeed="zero2.json"), "'fsdp', and run.deepspeed names zero2.json"),
        (RunOptions(device="cpu", threads=0), "threads is 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run: RunOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine(run, environ={})


def test_one_named_device_is_not_for_several_processes() -> None:
    with pytest.raises(UsageError, match="'meta' for 8 processes"):
        rank_device("meta", read_placement(TORCHRUN))
    assert rank_device("cpu", read_placement(TORCHRUN)) == torch.device("cpu")


def test_ranks_that_cannot_be_reached_are_an_error() -> None:
    nobody = Placement(rank=1, world_size=2, local_rank=1, local_world_size=2, address="127.0.0.1", port=1)
    with pytest.raises(RankError, match=r"rank 1 of 2 cannot meet the others at 127\.0\.0\.1:1"):
        join(nobody, device=torch.device("cpu"), timeout_s=1)


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    stderr: str
    seconds: float


MAIN = """
import os, sys, time, torch
from llava.command import run
from llava.train.config import RunOptions
from llava.train.parallel.launch import make_engine

def main():
    rank = int(os.environ["SLURM_PROCID"])
    batch = 8 + rank if sys.argv[1] == "disagree" else 8
    engine = make_engine(RunOptions(device="cpu", hang_timeout_s=4, global_batch=batch, threads=1 + rank))
    assert engine.sum(torch.ones(1)).item() == 2
    if rank == 1 and sys.argv[1] == "die":
        os.kill(os.getpid(), 9)
    if rank == 1 and sys.argv[1] == "hang":
        time.sleep(60)
    engine.barrier()
    engine.close()
    return 0

sys.exit(run(main))
"""


def two_tasks(what: str) -> list[Ended]:
    """Start two processes as srun would and return how they end; one that still runs then is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    common = {"SLURM_NTASKS": "2", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}
    begin = time.monotonic()
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", MAIN, what],
            env={**base, **common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    ended: list[Ended] = []
    for task in tasks:
        if what == "hang" and ended:
            task.kill()
        _, stderr = task.communicate(timeout=120)
        ended.append(Ended(task.returncode, stderr, time.monotonic() - begin))
    return ended


def test_two_tasks_of_slurm_meet_and_end_well() -> None:
    assert [task.code for task in two_tasks("work")] == [0, 0]


def test_the_death_of_a_rank_ends_the_others_with_one_line() -> None:
    survivor, dead = two_tasks("die")
    assert dead.code == -9
    assert survivor.code == 2, survivor.stderr
    errors = [line for line in survivor.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "error[rank]: rank 0 lost touch with the others" in errors[0]
    assert "Traceback" not in survivor.stderr


def test_a_rank_that_hangs_ends_the_others_within_the_timeout() -> None:
    waiting, _ = two_tasks("hang")
    assert waiting.code == 2, waiting.stderr
    assert "error[rank]: rank 0 lost touch with the others in a sum over ranks" in waiting.stderr
    assert waiting.seconds < 60


def test_ranks_with_different_options_are_refused_on_all() -> None:
    first, second = two_tasks("disagree")
    assert (first.code, second.code) == (2, 2)
    assert "error[usage]: the ranks were started with different options" in first.stderr
    assert "global_batch is 9 here and 8 on rank 0" in second.stderr
