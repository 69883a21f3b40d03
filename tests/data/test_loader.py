"""The loader: the same steps from any number of workers and from any step on; bad samples by policy."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.batch import Batch
from llava.data.loader import Collation, StepBatches, batches
from llava.data.mixture import open_paths
from llava.data.plan import Plan, PlanOptions, make_plan
from llava.data.policy import BadSampleLog
from llava.data.records import Record
from llava.data.scan import Data, scan
from llava.errors import DataError, ImageError
from tests.data.samples import TRAINING, ListData, encoder, picture, record, training_tokenizer

PACKED = Collation(packing=True)
PADDED = Collation(packing=False, pad_id=0)
ENCODER = encoder()


def records(num: int, *, broken: tuple[int, ...] = ()) -> list[Record | None]:
    made: list[Record | None] = []
    for number in range(num):
        images = [b"broken" if number in broken else picture(number)] if number % 3 else []
        question = "<image>\nwhat" if images else "hello"
        made.append(record(question, "word " * (number % 7 + 1), images=images, name=f"s{number}"))
    return made


DATA = ListData(records(22))


def plan_for(data: Data, *, world_size: int = 1, **options: Any) -> Plan:
    values = {"global_batch": 8, "micro_batch": 2, "micro_tokens": 300, "seed": 3, "epochs": 2.0, **options}
    return make_plan(scan(data, ENCODER), PlanOptions(**values), world_size=world_size)


def load(
    data: Data = DATA, *, collation: Collation = PACKED, log: BadSampleLog | None = None, **options: Any
) -> list[StepBatches]:
    world_size = options.get("world_size", 1)
    plan = plan_for(data, world_size=world_size, packing=collation.packing)
    if log is None:
        log = BadSampleLog("fail", max_share=0.0, total=len(data))
    return list(batches(plan, data, ENCODER, log, collation=collation, **options))


def assert_same(first: Batch, second: Batch) -> None:
    for name in ("input_ids", "labels", "position_ids", "pixel_values"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (first.segments, first.ids, first.targets_per_sample) == (
        second.segments,
        second.ids,
        second.targets_per_sample,
    )


def assert_same_steps(first: list[StepBatches], second: list[StepBatches]) -> None:
    assert [step.step for step in first] == [step.step for step in second]
    for one, other in zip(first, second, strict=True):
        assert len(one.batches) == len(other.batches)
        for batch, twin in zip(one.batches, other.batches, strict=True):
            assert_same(batch, twin)


def names(steps: list[StepBatches]) -> list[list[str]]:
    return [sorted(name for batch in step.batches for name in batch.ids) for step in steps]


def test_steps_are_the_plans() -> None:
    steps = load()
    plan = plan_for(DATA)
    assert [step.step for step in steps] == list(range(6))
    for number, step in enumerate(steps):
        assert [list(batch.ids) for batch in step.batches] == [
            [f"s{index}" for index in slot] for slot in plan.step(number)
        ]
        assert (step.num_skipped, step.wait_s > 0) == (0, True)


@pytest.mark.parametrize("collation", [PACKED, PADDED])
def test_any_number_of_workers_gives_the_same(collation: Collation) -> None:
    alone = load(collation=collation)
    for num_workers in (1, 3):
        assert_same_steps(load(collation=collation, num_workers=num_workers), alone)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_goes_on_at_any_step(num_workers: int) -> None:
    assert_same_steps(load(first_step=4, num_workers=num_workers), load()[4:])
    assert load(first_step=6, num_workers=num_workers) == []


def test_ranks_share_a_step_and_have_as_many_micro_batches() -> None:
    alone = names(load())
    for world_size in (2, 4):
        ranks = [load(rank=rank, world_size=world_size) for rank in range(world_size)]
        for step, whole in enumerate(alone):
            assert len({len(rank[step].batches) for rank in ranks}) == 1
            assert sorted(name for rank in ranks for name in names(rank)[step]) == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_picture_ends_the_run_by_name(num_workers: int) -> None:
    data = ListData(records(22, broken=(4,)))
    with pytest.raises(DataError, match=r"memory item 5 \(s4\): .* is not a picture") as caught:
        load(data, num_workers=num_workers)
    assert isinstance(caught.value.__cause__, ImageError)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("collation", [PACKED, PADDED])
def test_a_broken_picture_is_left_out_and_counted(collation: Collation, num_workers: int) -> None:
    data = ListData(records(22, broken=(4, 7)))
    log = BadSampleLog("skip", max_share=0.1, total=22)
    steps = load(data, collation=collation, log=log, num_workers=num_workers)
    assert [sample.id for sample in log.samples] == ["s4", "s7"]
    assert sum(step.num_skipped for step in steps) == 4
    left = [[name for name in step if name not in ("s4", "s7")] for step in names(load(collation=collation))]
    assert names(steps) == left


def test_too_many_broken_pictures_end_the_run() -> None:
    data = ListData(records(22, broken=(4, 7)))
    with pytest.raises(DataError, match=r"2 of 22 samples cannot be used"):
        load(data, log=BadSampleLog("skip", max_share=0.05, total=22))


def test_a_micro_batch_that_lost_all_its_samples_is_empty() -> None:
    data = ListData(records(2, broken=(1,)))
    log = BadSampleLog("skip", max_share=1.0, total=2)
    plan = plan_for(data, global_batch=1, mode="sequential", epochs=1.0)
    steps = list(batches(plan, data, ENCODER, log, collation=PACKED))
    assert [step.batches[0].input_ids.shape[1] > 0 for step in steps] == [True, False]


def test_the_trainers_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    load(num_workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def workers_of(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    children: list[int] = []
    for task in os.listdir(f"/proc/{parent}/task"):
        with open(f"/proc/{parent}/task/{task}/children") as stream:
            children += [int(number) for number in stream.read().split()]
    return children


def wait_until(is_true: Any) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


@on_linux
def test_workers_end_with_the_caller_whatever_ends_it() -> None:
    before = set(workers_of(os.getpid()))
    plan = plan_for(DATA, epochs=50.0)
    log = BadSampleLog("fail", max_share=0.0, total=22)

    def train() -> None:
        for step in batches(plan, DATA, ENCODER, log, collation=PACKED, num_workers=2):
            assert len(set(workers_of(os.getpid())) - before) == 2
            assert 1 / (step.step - 2)

    with pytest.raises(ZeroDivisionError):
        train()
    wait_until(lambda: set(workers_of(os.getpid())) <= before)
    stopped = batches(plan, DATA, ENCODER, log, collation=PACKED, num_workers=2)
    next(stopped)
    stopped.close()
    wait_until(lambda: set(workers_of(os.getpid())) <= before)


@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_a_request_to_stop_to_the_trainer(number: signal.Signals) -> None:
    before = set(workers_of(os.getpid()))
    log = BadSampleLog("fail", max_share=0.0, total=22)
    running = batches(plan_for(DATA), DATA, ENCODER, log, collation=PACKED, num_workers=1)
    first = next(running)
    for worker in set(workers_of(os.getpid())) - before:
        os.kill(worker, number)
    assert_same_steps([first, *running], load())


@on_linux
def test_a_worker_that_is_killed_is_an_error_and_no_wait() -> None:
    before = set(workers_of(os.getpid()))
    log = BadSampleLog("fail", max_share=0.0, total=22)
    running = batches(plan_for(DATA, epochs=500.0), DATA, ENCODER, log, collation=PACKED, num_workers=1)
    next(running)
    for worker in set(workers_of(os.getpid())) - before:
        os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match="was ended by SIGKILL, maybe for want of memory"):
        list(running)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixture_of_files_is_loaded(num_workers: int) -> None:
    folder = TRAINING / "finetune-data"
    mixture = open_paths(str(folder / "data.json"), image_folder=str(folder / "images"))
    made = encoder(tokenizer=training_tokenizer("finetune"), max_length=128)
    found = scan(mixture, made, num_workers=num_workers, checks_pictures=True)
    assert (found.num_samples, int(found.is_usable.sum()), int(found.pictures.sum())) == (32, 32, 20)
    options = PlanOptions(global_batch=8, micro_batch=2, micro_tokens=256, seed=0)
    plan = make_plan(
        found, options, world_size=1, epoch_samples=lambda epoch: mixture.epoch_indices(0, epoch)
    )
    log = BadSampleLog("fail", max_share=0.0, total=32)
    steps = list(batches(plan, mixture, made, log, collation=PACKED, num_workers=num_workers))
    assert sorted(name for step in names(steps) for name in step) == sorted(
        mixture[index].id for index in range(32)
    )
    for batch in (batch for step in steps for batch in step.batches):
        assert batch.segments is not None
        assert max(batch.segments) <= 128
        assert int((batch.input_ids == IMAGE_TOKEN_INDEX).sum()) == 16 * len(batch.pixel_values)
