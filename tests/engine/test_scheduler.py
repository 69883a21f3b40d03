"""Joining, leaving, budgets, shared prefixes and memory, on a runner that can be looked into."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.engine.generation import Generation
from llava.engine.pictures import FeatureCache
from llava.engine.runner import Chunk
from llava.engine.scheduler import Scheduler, SchedulerOptions
from llava.errors import ConfigError, EngineError
from tests.engine.fakes import FakeRunner, exhausted, expected, generation, prompts


def scheduler(runner: FakeRunner, **options: int) -> Scheduler:
    return Scheduler(runner, FeatureCache(runner.encode_images), SchedulerOptions(**options))


def run(schedule: Scheduler, *generations: Generation) -> None:
    for one in generations:
        schedule.add(one)
    for _ in range(10_000):
        if not schedule.has_work:
            return
        schedule.step()
    raise AssertionError("it never ends")


def test_rows_join_and_leave_between_steps() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner, prefix_bytes=0)
    first, second = (generation(ids, num) for ids, num in zip(prompts(2, 5), (6, 2), strict=True))
    schedule.add(first)
    schedule.step()
    schedule.step()
    run(schedule, second)
    assert runner.steps == [[5], [1], [1, 5], [1, 1], [1], [1]]
    assert first.token_ids == expected(prompts(2, 5)[0], 6)
    assert second.token_ids == expected(prompts(2, 5)[1], 2)
    assert runner.num_bytes == 0


def test_a_step_computes_no_more_of_prompts_than_its_budget() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner, prefill_tokens=8, prefix_bytes=0)
    ids = prompts(2, 20)
    one, other = generation(ids[0]), generation(ids[1])
    run(schedule, one, other)
    assert max(sum(length for length in step if length > 1) for step in runner.steps) <= 8
    assert one.token_ids == expected(ids[0], 4)
    assert other.token_ids == expected(ids[1], 4)


def test_running_rows_go_on_while_prompts_are_computed() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner, prefill_tokens=4, prefix_bytes=0)
    ids = prompts(2, 12)
    early, late = generation(ids[0][:4], 10), generation(ids[1])
    schedule.add(early)
    schedule.step()
    schedule.add(late)
    before = len(early.token_ids)
    for _ in range(3):
        schedule.step()
    assert len(early.token_ids) == before + 3
    assert len(late.token_ids) == 1


def test_the_next_turn_computes_only_what_is_new() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner)
    (ids,) = prompts(1, 40)
    first = generation(ids, 5)
    run(schedule, first)
    runner.steps.clear()
    following = [*ids, *first.token_ids, 9, 8, 7]
    second = generation(following, 3)
    run(schedule, second)
    # The last token of an answer is never computed in its own row.
    assert runner.steps[0] == [4]
    assert second.num_cached_tokens == 44
    assert second.token_ids == expected(following, 3)


def test_questions_with_one_beginning_wait_for_the_first_to_compute_it() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner)
    ids = prompts(5, 60, shared=50)
    generations = [generation(one, 2) for one in ids]
    run(schedule, *generations)
    assert runner.steps[0] == [60]
    assert sorted(runner.steps[1]) == [1, 10, 10, 10, 10]
    assert [one.token_ids for one in generations] == [expected(one, 2) for one in ids]
    assert schedule.statistics().num_cached_tokens == 4 * 50


def test_without_a_cache_nothing_is_kept_or_shared() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner, prefix_bytes=0)
    ids = prompts(2, 60, shared=50)
    run(schedule, generation(ids[0], 2), generation(ids[1], 2))
    assert runner.steps[0] == [60, 60]
    assert schedule.statistics().num_cached_tokens == 0
    assert runner.num_bytes == 0


def test_memory_is_waited_for_and_stored_prefixes_make_room_first() -> None:
    runner = FakeRunner(max_bytes=50)
    schedule = scheduler(runner)
    ids = prompts(3, 20)
    run(schedule, generation(ids[0], 5))
    assert runner.num_bytes == 24
    one, other = generation(ids[1], 5), generation(ids[2], 5)
    schedule.add(one)
    schedule.add(other)
    schedule.step()
    assert schedule.statistics().num_running == 2
    assert schedule.statistics().cache_bytes == 0
    third = generation(prompts(4, 20)[3], 5)
    schedule.add(third)
    schedule.step()
    assert schedule.statistics().num_waiting == 1
    run(schedule)
    assert [len(each.token_ids) for each in (one, other, third)] == [5, 5, 5]


def test_a_row_without_numbers_ends_its_own_answer_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    schedule = scheduler(runner)
    ids = prompts(2, 20)
    broken, sound = generation(ids[0]), generation(ids[1])
    real = runner.forward

    def forward(chunks: Sequence[Chunk]) -> torch.Tensor:
        logits = real(chunks)
        for index, chunk in enumerate(chunks):
            if chunk.row is broken.row:
                logits[index] = torch.nan
        return logits

    monkeypatch.setattr(runner, "forward", forward)
    run(schedule, broken, sound)
    assert isinstance(broken.error, EngineError)
    assert "no number" in str(broken.error)
    assert sound.token_ids == expected(ids[1], 4)


def test_what_never_fits_is_an_error_and_the_rest_goes_on() -> None:
    schedule = scheduler(FakeRunner(max_bytes=30))
    large, small = generation(prompts(1, 40)[0]), generation(prompts(2, 20)[1])
    run(schedule, large, small)
    assert isinstance(large.error, EngineError)
    assert "may take 43 tokens" in str(large.error)
    assert small.error is None
    assert len(small.token_ids) == 4
    assert schedule.statistics().num_failed == 1


def test_a_device_without_memory_costs_the_newest_request_alone() -> None:
    runner = FakeRunner()
    schedule = scheduler(runner, prefill_tokens=64)
    ids = prompts(3, 30)
    old, middle, new = (generation(one, 6) for one in ids)
    schedule.add(old)
    schedule.step()
    schedule.add(middle)
    schedule.add(new)
    runner.failures = [exhausted()]
    run(schedule)
    assert isinstance(new.error, EngineError)
    assert old.token_ids == expected(ids[0], 6)
    assert middle.token_ids == expected(ids[1], 6)


def test_everything_that_waits_hears_of_an_error_that_nobody_expected() -> None:
    schedule = scheduler(FakeRunner(), max_rows=1)
    told: list[Generation] = []
    generations = [
        generation(ids, on_piece=lambda one, piece: told.append(one) if piece is None else None)
        for ids in prompts(3, 20)
    ]
    for one in generations:
        schedule.add(one)
    schedule.step()
    schedule.fail_all(ValueError("broken"))
    assert told == generations
    assert all(isinstance(one.error, ValueError) for one in generations)
    assert not schedule.has_work
    assert schedule.statistics().num_failed == 3


def test_an_option_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_rows is 0"):
        SchedulerOptions(max_rows=0)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 6),  # steps after the one before
            st.integers(0, 3),  # which beginning
            st.integers(1, 30),  # ids of its own
            st.integers(1, 8),  # new tokens
            st.one_of(st.none(), st.integers(0, 10)),  # cancelled so many steps later
        ),
        min_size=1,
        max_size=10,
    ),
    max_rows=st.integers(1, 4),
    prefill_tokens=st.integers(1, 40),
    prefix_bytes=st.sampled_from([0, 100, 10_000]),
    max_bytes=st.sampled_from([100, 300, 10_000]),
)
def test_every_answer_is_the_one_it_would_be_alone(
    arrivals: list[tuple[int, int, int, int, int | None]],
    max_rows: int,
    prefill_tokens: int,
    prefix_bytes: int,
    max_bytes: int,
) -> None:
    runner = FakeRunner(max_bytes=max_bytes)
    schedule = scheduler(runner, max_rows=max_rows, prefill_tokens=prefill_tokens, prefix_bytes=prefix_bytes)
    began: list[tuple[Generation, list[int], int]] = []
    ends: dict[int, list[Generation]] = {}
    now = 0
    for gap, beginning, own, num, cancelled in arrivals:
        for _ in range(gap):
            _step(schedule, ends, now)
            now += 1
        ids = [2 + beginning] * 20 + [2 + (own * place) % 47 for place in range(own)]
        one = generation(ids, num)
        began.append((one, ids, num))
        schedule.add(one)
        if cancelled is not None:
            ends.setdefault(now + cancelled, []).append(one)
    for _ in range(5_000):
        if not schedule.has_work:
            break
        _step(schedule, ends, now)
        now += 1
    assert not schedule.has_work
    for one, ids, num in began:
        whole = expected(ids, num)
        assert one.token_ids == whole[: len(one.token_ids)]
        assert one.is_cancelled or one.token_ids == whole
    schedule.fail_all(ValueError("the end"))
    assert runner.num_bytes == 0


def _step(schedule: Scheduler, ends: dict[int, list[Generation]], now: int) -> None:
    for one in ends.get(now, []):
        one.is_cancelled = True
    schedule.step()
