"""One of two ranks, started by torchrun: trains with one engine after the other in the same processes.

worker.py FOLDER ENGINE...     writes FOLDER/results.json and FOLDER/ENGINE/
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from llava.command import run as run_command
from llava.files import write_json
from llava.train.config import RunOptions
from llava.train.parallel.engine import Engine
from llava.train.parallel.group import Group
from llava.train.parallel.launch import engine_in, join, read_placement
from tests.train.parallel import runs

CONFIGS = {f"zero{stage}": {"zero_optimization": {"stage": stage}} for stage in (1, 2, 3)}


def options(name: str, folder: Path) -> RunOptions:
    """Return the options that choose an engine by the tests' name for it."""
    if name not in CONFIGS:
        return RunOptions(device="cpu", engine="ddp" if name == "ddp" else "fsdp")
    path = folder / f"{name}.json"
    if os.environ["RANK"] == "0":
        zero = {"reduce_bucket_size": "auto", "overlap_comm": True, "contiguous_gradients": True}
        sections = {"zero_optimization": {**CONFIGS[name]["zero_optimization"], **zero}}
        write_json(path, {"bf16": {"enabled": "auto"}, "train_batch_size": "auto", **sections})
    return RunOptions(device="cpu", deepspeed=str(path))


def local_share(module: nn.Module) -> float:
    """Return which share of the frozen weights' numbers lies on this rank."""
    frozen = [value for value in module.parameters() if not value.requires_grad]
    return sum(_num_local(value) for value in frozen) / sum(_num_all(value) for value in frozen)


def _num_local(value: Any) -> int:
    if isinstance(value, DTensor):
        return value.to_local().numel()
    return value.ds_tensor.numel() if hasattr(value, "ds_tensor") else value.numel()


def _num_all(value: Any) -> int:
    return value.ds_numel if hasattr(value, "ds_numel") else value.numel()


def engines(group: Group, name: str, folder: Path) -> Iterator[Engine]:
    """Yield engine after engine of a name."""
    run = options(name, folder)
    group.barrier()
    while True:
        yield engine_in(group, run)


def try_engine(group: Group, name: str, folder: Path) -> dict[str, Any]:
    """Train, save, train on; resume in another engine; then train other parts."""
    source = engines(group, name, folder)
    first, resumed, projector, everything = (next(source) for _ in range(4))
    module = runs.prepare(first, "language")
    before = runs.train(first, runs.STEPS[:2])
    runs.checkpoint(first, folder / name)
    after = runs.train(first, runs.STEPS[2:])
    state = first.full_state()
    if group.rank == 0:
        save_file(state, folder / name / "full.safetensors")
    runs.prepare(resumed, "language")
    resumed.load(folder / name)
    runs.prepare(projector, "projector")
    runs.prepare(everything, "all")
    return {
        "figures": before + after,
        "resumed": runs.train(resumed, runs.STEPS[2:]),
        "projector": runs.train(projector, runs.STEPS, max_grad_norm=0.0),
        "all": runs.train(everything, runs.STEPS),
        "poisoned": runs.change_by_a_step_that_is_no_number(everything),
        "frozen_share": local_share(module),
        "any": [group.any(group.rank == 1), group.any(False)],
        "broadcast": group.broadcast(f"of rank {group.rank}"),
        "others_state": len(state) if group.rank else 0,
    }


def load_of_one(group: Group, name: str, folder: Path) -> list[runs.Figures]:
    """Go on from what one rank saved."""
    engine = next(engines(group, name, folder))
    runs.prepare(engine, "language")
    engine.load(folder / f"{name}-of-one")
    return runs.train(engine, runs.STEPS[2:])


def main() -> int:
    """Try the engines named on the command line."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    group = join(read_placement(os.environ), device=torch.device("cpu"), timeout_s=30)
    results: dict[str, Any] = {name: try_engine(group, name, folder) for name in names}
    for name in ("ddp", "fsdp"):
        results[name]["of_one"] = load_of_one(group, name, folder)
    write_json(folder / f"results-{group.rank}.json", results)
    group.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
