"""Plans: the same samples in a step on any number of ranks, fractional epochs, and recorded orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.data.plan import Plan, PlanOptions, make_plan, replay_plan
from llava.data.scan import Scan
from llava.errors import ConfigError, DataError, FileError
from llava.files import read_json, write_json
from tests.data.samples import TRAINING, length_mix, training_data
from tests.data.scans import scan_of

SCAN = scan_of(length_mix(103).tolist(), unusable=[3])
OPTIONS: dict[str, Any] = {
    "global_batch": 16,
    "micro_batch": 2,
    "micro_tokens": 1024,
    "seed": 7,
    "epochs": 2.0,
}


def plan_of(*, world_size: int = 1, scan: Scan = SCAN, epoch_samples: Any = None, **options: Any) -> Plan:
    return make_plan(
        scan, PlanOptions(**{**OPTIONS, **options}), world_size=world_size, epoch_samples=epoch_samples
    )


def samples_of(plan: Plan, step: int) -> list[int]:
    return sorted(index for slot in plan.step(step) for index in slot)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("mode", ["random", "length", "modality_length", "sequential"])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(mode: str, packing: bool) -> None:
    plans = [plan_of(world_size=ranks, mode=mode, packing=packing) for ranks in (1, 2, 4, 8)]
    assert {plan.num_steps for plan in plans} == {14}
    for step in range(14):
        assert len({tuple(samples_of(plan, step)) for plan in plans}) == 1
        for plan, ranks in zip(plans, (1, 2, 4, 8), strict=True):
            assert len(plan.step(step)) % ranks == 0


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_shows_every_usable_sample_once_and_the_next_in_another_order(packing: bool) -> None:
    plan = plan_of(packing=packing)
    first, second = ([samples_of(plan, step) for step in range(start, start + 7)] for start in (0, 7))
    for epoch in (first, second):
        assert sorted(index for step in epoch for index in step) == [i for i in range(103) if i != 3]
    assert first != second
    assert [len(step) for step in first] == [16] * 6 + [6]


def test_a_step_can_be_asked_for_in_any_order() -> None:
    forward, backward = plan_of(), plan_of()
    steps = [forward.step(step) for step in range(14)]
    assert [backward.step(step) for step in reversed(range(14))] == steps[::-1]


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"epochs": 1.0}, 7),
        ({"epochs": 0.5}, 4),
        ({"epochs": 0.01}, 1),
        ({"epochs": 3.0}, 21),
        ({"epochs": 1.0, "max_steps": 100}, 100),
        ({"epochs": 3.0, "max_steps": 2}, 2),
    ],
)
def test_steps_come_from_epochs_unless_they_are_stated(options: dict[str, Any], num_steps: int) -> None:
    plan = plan_of(**options)
    assert (plan.num_steps, plan.steps_per_epoch) == (num_steps, 7)
    assert samples_of(plan, num_steps - 1)


def test_three_tenths_of_ten_steps_are_three() -> None:
    assert plan_of(scan=scan_of([5] * 160), epochs=0.3).num_steps == 3


def test_micro_limits_hold() -> None:
    for slot in plan_of(world_size=2).step(0):
        assert len(slot) == 1 or SCAN.tokens[slot].sum() <= 1024
    assert all(len(slot) == 2 for slot in plan_of(packing=False, world_size=2).step(0))


def test_the_order_is_kept_inside_a_step_where_it_is_asked_for() -> None:
    plan = plan_of(packing=False, mode="sequential", keeps_order=True)
    assert plan.step(0) == [[0, 1], [2, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14], [15, 16]]


def test_epochs_may_hold_other_samples_each() -> None:
    pools = [np.array([0, 1, 2, 3, 4, 0]), np.array([5, 6, 7, 8, 9, 10])]
    plan = plan_of(epoch_samples=lambda epoch: pools[epoch], global_batch=3)
    assert plan.num_steps == 4
    # Sample 3 is bad: the second epoch has one more, and is made as long as the first.
    first = [index for step in (0, 1) for index in samples_of(plan, step)]
    second = [index for step in (2, 3) for index in samples_of(plan, step)]
    assert sorted(first) == [0, 0, 1, 2, 4]
    assert len(second) == 5
    assert set(second) < {5, 6, 7, 8, 9, 10}


def test_sizes_under_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"run.global_batch is 0"):
        plan_of(global_batch=0)
    with pytest.raises(ConfigError, match=r"run.epochs is 0"):
        plan_of(epochs=0)


@pytest.mark.parametrize("run", ["pretrain", "finetune", "lora"])
def test_a_recorded_order_is_replayed(run: str) -> None:
    path = TRAINING / run / "order.json"
    recorded = [[micro["index"] for micro in step] for step in read_json(path)["steps"]]
    plan = replay_plan(path, training_data(run), world_size=1)
    assert [plan.step(step) for step in range(plan.num_steps)] == recorded
    assert plan.steps_per_epoch == pytest.approx({"pretrain": 3, "finetune": 8, "lora": 8}[run])
    spread = replay_plan(path, training_data(run), world_size=4)
    assert all(len(spread.step(step)) % 4 == 0 for step in range(plan.num_steps))
    assert samples_of(spread, 0) == sorted(index for micro in recorded[0] for index in micro)


def test_an_order_of_other_data_is_refused(tmp_path: Path) -> None:
    path = TRAINING / "pretrain" / "order.json"
    with pytest.raises(DataError, match=r"has id 'cap-16' at sample 16, and the data has 'img-11'"):
        replay_plan(path, training_data("finetune"), world_size=1)
    write_json(tmp_path / "o.json", {"steps": [[{"ids": ["x"], "index": [99]}]]})
    with pytest.raises(DataError, match="names sample 99, and the data has 32"):
        replay_plan(tmp_path / "o.json", training_data("finetune"), world_size=1)


@pytest.mark.parametrize(
    "content", [[], {}, {"steps": []}, {"steps": [[]]}, {"steps": [[{"ids": ["a"]}]]}, {"steps": [[3]]}]
)
def test_what_is_no_recorded_order_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "o.json", content)
    with pytest.raises(DataError, match="no recorded order"):
        replay_plan(tmp_path / "o.json", training_data("finetune"), world_size=1)
    with pytest.raises(FileError, match="does not exist"):
        replay_plan(tmp_path / "none.json", training_data("finetune"), world_size=1)
