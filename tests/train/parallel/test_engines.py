"""All engines on two gloo processes, in one launch, against one process with the union of the batches."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import nn

from llava.errors import CheckpointError, WeightsError
from llava.model.device import DTYPES
from llava.train.parallel.engine import Engine
from llava.train.parallel.fsdp import FsdpEngine
from llava.train.parallel.launch import Placement, join
from llava.train.parallel.single import SingleEngine
from tests.train.parallel import runs

ROOT = Path(__file__).parents[3]
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
ZERO = ["zero1", "zero2", "zero3"]
LAUNCHED = ["ddp", "fsdp", *(ZERO if HAS_DEEPSPEED else [])]
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(name not in LAUNCHED, reason="deepspeed is not installed"))
    for name in ["ddp", "fsdp", *ZERO]
]


def single() -> SingleEngine:
    return SingleEngine(torch.device("cpu"))


@pytest.fixture(scope="module")
def fsdp_of_one() -> Iterator[Any]:
    """Return a maker of FSDP engines in a group of this process alone."""
    group = join(Placement(), device=torch.device("cpu"), timeout_s=30)
    yield lambda: FsdpEngine(group)
    group.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, fsdp_of_one: Any) -> dict[str, Any]:
    """Return the figures of one process, and leave its checkpoints of two steps for the launch."""
    folder = tmp_path_factory.mktemp("engines")
    found: dict[str, Any] = {"folder": folder}
    makers = {"ddp": single, "fsdp": fsdp_of_one}
    for name, make in makers.items():
        engine: Engine = make()
        runs.prepare(engine, "language")
        before = runs.train(engine, runs.STEPS[:2])
        runs.checkpoint(engine, folder / f"{name}-of-one")
        found[name] = before + runs.train(engine, runs.STEPS[2:])
        found[f"{name}-state"] = engine.full_state()
    for learns, norm in (("projector", 0.0), ("all", 1.0)):
        engine = single()
        runs.prepare(engine, learns)
        found[learns] = runs.train(engine, runs.STEPS, max_grad_norm=norm)
    return found


@pytest.fixture(scope="module")
def two(alone: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each of two ranks found, engine after engine."""
    folder = alone["folder"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.train.parallel.worker", str(folder), *LAUNCHED],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)]


def assert_equal_figures(got: Any, expected: Any) -> None:
    """Losses to five decimals, norms to six digits."""
    for (loss, norm), (expected_loss, expected_norm) in zip(got, expected, strict=True):
        assert loss == pytest.approx(expected_loss, abs=5e-6)
        assert norm == pytest.approx(expected_norm, rel=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_have_the_losses_and_norms_of_one_process(name: str, two: Any, alone: Any) -> None:
    assert_equal_figures(two[0][name]["figures"], alone["ddp"])


@pytest.mark.parametrize("learns", ["projector", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_that_holds_whatever_learns(name: str, learns: str, two: Any, alone: Any) -> None:
    assert_equal_figures(two[0][name][learns], alone[learns])


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_sees_the_same_figures(name: str, two: Any) -> None:
    assert two[0][name]["figures"] == two[1][name]["figures"]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_to_the_bit(name: str, two: Any) -> None:
    assert two[0][name]["resumed"] == two[0][name]["figures"][2:]


@pytest.mark.parametrize("name", NAMES)
def test_the_gathered_weights_are_those_of_one_process(name: str, two: Any, alone: Any) -> None:
    del two
    gathered = load_file(alone["folder"] / name / "full.safetensors")
    assert gathered.keys() == alone["ddp-state"].keys()
    for key, value in alone["ddp-state"].items():
        torch.testing.assert_close(gathered[key], value, rtol=0, atol=2e-4)
    change = max(float((gathered[key] - start).abs().max()) for key, start in initial().items())
    assert change > 1e-2, "nothing was learnt"


def initial() -> dict[str, torch.Tensor]:
    """Return the trained weights before the first step."""
    engine = single()
    runs.prepare(engine, "language")
    return engine.full_state()


@pytest.mark.parametrize("name", NAMES)
def test_only_rank_0_receives_the_gathered_weights(name: str, two: Any) -> None:
    assert two[1][name]["others_state"] == 0


@pytest.mark.parametrize(("name", "most"), [("ddp", 1.0), ("fsdp", 0.55), *[(z, 1.0) for z in ZERO]])
def test_sharding_engines_spread_frozen_weights_too(name: str, most: float, two: Any) -> None:
    if name not in LAUNCHED:
        pytest.skip("deepspeed is not installed")
    shares = [ranks[name]["frozen_share"] for ranks in two]
    if name == "zero3":
        most = 0.55
    assert all(share <= most for share in shares), shares
    assert sum(shares) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_flags_and_values_reach_every_rank(name: str, two: Any) -> None:
    for rank in two:
        assert rank[name]["any"] == [True, False]
        assert rank[name]["broadcast"] == "of rank 0"


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_no_number_is_reported_everywhere_and_moves_nothing(name: str, two: Any) -> None:
    for rank in two:
        norm, change = rank[name]["poisoned"]
        assert not math.isfinite(norm)
        assert change == 0


def test_an_overflow_in_float16_halves_the_loss_scale_and_moves_nothing() -> None:
    engine = single()
    weight = nn.Parameter(torch.ones(1))
    module = nn.ParameterList([weight])
    engine.prepare(module, lambda m: torch.optim.SGD(m.parameters()), compute_dtype=DTYPES["float16"])
    for loss, expected in ((weight * 1e37, 1.0), (weight * 2e33, 1.0 - 0.25), (weight * 2, 0.5)):
        engine.backward(loss.sum(), is_last=True)
        norm = engine.step(max_grad_norm=1.0, lrs=[0.25])
        assert math.isfinite(norm) == (expected < 1)
        assert weight.item() == pytest.approx(expected)
        assert engine.is_rescaling == (expected == 1)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_go_on_from_what_one_saved(name: str, two: Any, alone: Any) -> None:
    assert_equal_figures(two[0][name]["of_one"], alone["ddp"][2:])


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_one_rank_goes_on_from_what_two_saved(name: str, two: Any, alone: Any, fsdp_of_one: Any) -> None:
    del two
    engine: Engine = single() if name == "ddp" else fsdp_of_one()
    runs.prepare(engine, "language")
    engine.load(alone["folder"] / name)
    assert_equal_figures(runs.train(engine, runs.STEPS[2:]), alone["ddp"][2:])


def test_fsdp_in_a_group_of_one_trains_as_one_process(alone: Any) -> None:
    assert_equal_figures(alone["fsdp"], alone["ddp"])


def test_frozen_weights_are_not_in_a_checkpoint(alone: Any) -> None:
    with safe_open(alone["folder"] / "ddp-of-one" / "trained.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert not [name for name in names if "vision_tower" in name]
    assert "model/model.lm_head.weight" in names
    assert "optimizer/model.lm_head.weight/exp_avg" in names


def test_a_checkpoint_of_other_parameters_is_refused(alone: Any, fsdp_of_one: Any) -> None:
    engine = single()
    runs.prepare(engine, "all")
    with pytest.raises(WeightsError, match=r"lacks model\.model\.vision_tower.*stage"):
        engine.load(alone["folder"] / "ddp-of-one")
    sharded = fsdp_of_one()
    runs.prepare(sharded, "all")
    with pytest.raises(CheckpointError, match="vision_tower"):
        sharded.load(alone["folder"] / "fsdp-of-one")


def test_a_damaged_checkpoint_is_refused(alone: Any, tmp_path: Path) -> None:
    for name in ("trained.json", "trained.safetensors"):
        content = (alone["folder"] / "ddp-of-one" / name).read_bytes()
        (tmp_path / name).write_bytes(content if name.endswith("json") else content[: len(content) // 2])
    engine = single()
    runs.prepare(engine, "language")
    with pytest.raises(CheckpointError, match="cannot be read"):
        engine.load(tmp_path)
