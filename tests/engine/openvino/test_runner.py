"""The runner under any order of events: rows that join and leave, prompts in pieces, shared beginnings."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import torch

from llava.engine.openvino import support
from llava.engine.openvino.paging import OpenVinoOptions
from llava.engine.openvino.runner import OpenVinoRunner, PagedPrefix, PagedRow
from llava.engine.runner import Chunk
from llava.errors import ConfigError, EngineError
from tests.engine.openvino.helpers import (
    EMBEDDED,
    NEEDS_BFLOAT16,
    continue_greedily,
    converted,
    embeds_of,
    runner_of,
)
from tests.model.folders import CLIP, loaded

pytest.importorskip("openvino")
NUM_NEW = 8
NO_END: frozenset[int] = frozenset()


def prompts(count: int) -> list[torch.Tensor]:
    """Return int64[L] of different lengths, of which several begin alike and some have a picture."""
    generator = torch.Generator().manual_seed(3)
    beginning = torch.cat([torch.randint(3, 900, (9,), generator=generator), torch.full((64,), -200)])
    made = []
    for number in range(count):
        own = torch.randint(3, 900, (5 + 17 * number % 61,), generator=generator)
        made.append(torch.cat([beginning, own]) if number % 2 else own)
    return made


def pixels() -> torch.Tensor:
    size = loaded(EMBEDDED).image_processor.rules.size
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(4))


class Job:
    """A prompt on its way to NUM_NEW tokens."""

    def __init__(self, embeds: torch.Tensor) -> None:
        self.embeds = embeds
        self.row: PagedRow | None = None
        self.tokens: list[int] = []

    @property
    def in_row(self) -> PagedRow:
        assert self.row is not None
        return self.row


def next_chunk(job: Job, runner: OpenVinoRunner, rng: random.Random) -> Chunk:
    """Return a piece of random length of the job's prompt, or its last token."""
    done = job.in_row.num_tokens
    rest = len(job.embeds) - done
    if rest <= 0:
        return Chunk(job.in_row, runner.embed(torch.tensor(job.tokens[-1:])))
    length = rng.randint(1, rest)
    return Chunk(job.in_row, job.embeds[done : done + length], wants_logits=length == rest)


def random_schedule(runner: OpenVinoRunner, jobs: list[Job], rng: random.Random) -> None:
    """Run all jobs to their end, with random arrivals, pieces, shared beginnings and cancelled copies."""
    waiting = list(jobs)
    running: list[Job] = []
    stored: list[tuple[Job, PagedPrefix]] = []
    while waiting or running:
        if waiting and (not running or rng.random() < 0.5):
            job = waiting.pop()
            job.row = open_row(runner, job, running, stored, rng)
            running.append(job)
            if rng.random() < 0.3:
                # Somebody leaves at once.
                runner.close(runner.open(40), keep=False)
        step = [job for job in running if rng.random() < 0.8] or running[:1]
        chunks = [next_chunk(job, runner, rng) for job in step]
        logits = iter(runner.forward(chunks))
        for job, chunk in zip(step, chunks, strict=True):
            if chunk.wants_logits:
                job.tokens.append(int(next(logits).argmax()))
        for job in [job for job in running if len(job.tokens) == NUM_NEW]:
            running.remove(job)
            kept = runner.close(job.in_row, keep=rng.random() < 0.6)
            if kept is not None:
                stored.append((job, kept))
    for _, prefix in stored:
        runner.drop(prefix)


def open_row(
    runner: OpenVinoRunner,
    job: Job,
    running: list[Job],
    stored: list[tuple[Job, PagedPrefix]],
    rng: random.Random,
) -> PagedRow:
    """Open the job's row from the longest beginning that a row or a stored prefix has in common with it."""
    sources = [(other, other.in_row) for other in running] + stored
    best, num_shared = None, 0
    for other, source in sources:
        length = min(len(job.embeds) - 1, len(other.embeds), source.num_tokens)
        differs = (job.embeds[:length] != other.embeds[:length]).any(-1).nonzero()
        common = int(differs[0]) if len(differs) else length
        if common > num_shared:
            best, num_shared = source, common
    if num_shared and rng.random() < 0.3:
        num_shared = rng.randint(1, num_shared)
    return runner.open(len(job.embeds) + NUM_NEW, source=best, num_shared=num_shared)


@pytest.mark.parametrize("seed", range(3))
def test_any_schedule_gives_the_tokens_of_each_prompt_alone(seed: int) -> None:
    runner = runner_of(EMBEDDED)
    free = runner.num_free_blocks
    jobs = [Job(embeds_of(runner, ids, pixels() if (ids == -200).any() else None)) for ids in prompts(9)]
    alone = []
    for job in jobs:
        row = runner.open(len(job.embeds) + NUM_NEW + 1)
        alone.append(continue_greedily(runner, row, job.embeds, NUM_NEW, NO_END))
        runner.close(row, keep=False)
    random_schedule(runner, jobs, random.Random(seed))
    assert [job.tokens for job in jobs] == alone
    assert runner.num_free_blocks == free


def test_tokens_are_those_of_torch_for_ragged_rows() -> None:
    model = loaded(EMBEDDED).model
    runner = runner_of(EMBEDDED)
    jobs = [Job(embeds_of(runner, ids, pixels() if (ids == -200).any() else None)) for ids in prompts(6)]
    random_schedule(runner, jobs, random.Random(5))
    for job in jobs:
        with torch.inference_mode():
            after = model.get_input_embeddings()(torch.tensor(job.tokens[:-1]))
            logits = model(inputs_embeds=torch.cat([job.embeds, after])[None]).logits[0]
        assert logits[len(job.embeds) - 1 :].argmax(-1).tolist() == job.tokens


def test_full_blocks_are_shared_and_a_part_is_copied() -> None:
    runner = runner_of(EMBEDDED)
    size = runner.block_size
    embeds = runner.embed(torch.arange(3, 3 + 2 * size + 5))
    free = runner.num_free_blocks
    first = runner.open(len(embeds))
    runner.forward([Chunk(first, embeds, wants_logits=False)])
    assert free - runner.num_free_blocks == 3
    second = runner.open(len(embeds), source=first, num_shared=2 * size + 3)
    assert free - runner.num_free_blocks == 4
    assert second.num_tokens == 2 * size + 3
    kept = runner.close(first, keep=True)
    assert kept is not None
    assert (kept.num_tokens, kept.num_bytes) == (len(embeds), runner.block_bytes)
    runner.close(second, keep=False)
    assert kept.num_bytes == 3 * runner.block_bytes
    runner.drop(kept)
    assert runner.num_free_blocks == free


def test_a_kept_row_gives_back_the_blocks_it_did_not_use() -> None:
    runner = runner_of(EMBEDDED)
    free = runner.num_free_blocks
    row = runner.open(500)
    runner.forward([Chunk(row, runner.embed(torch.tensor([5, 6])))])
    kept = runner.close(row, keep=True)
    assert free - runner.num_free_blocks == 1
    assert kept is not None
    runner.drop(kept)
    empty = runner.close(runner.open(500), keep=True)
    assert empty is None
    assert runner.num_free_blocks == free


def test_memory_is_bounded_by_its_option() -> None:
    probe = runner_of(EMBEDDED)
    options = OpenVinoOptions(num_threads=1, cache_bytes=3 * probe.block_bytes + 1)
    runner = runner_of(EMBEDDED, options=options)
    assert runner.num_free_blocks == 3
    assert runner.can_open(3 * runner.block_size)
    assert not runner.can_open(3 * runner.block_size + 1)
    row = runner.open(runner.block_size + 1)
    assert not runner.can_open(runner.block_size + 1)
    with pytest.raises(EngineError, match=r"2 blocks .* 1 are free"):
        runner.open(runner.block_size + 1)
    runner.close(row, keep=False)
    assert runner.can_open(3 * runner.block_size)


def test_a_row_does_not_outgrow_its_blocks() -> None:
    runner = runner_of(EMBEDDED)
    row = runner.open(2)
    with pytest.raises(EngineError, match="opened for 2 tokens would have 3"):
        runner.forward([Chunk(row, runner.embed(torch.tensor([5, 6, 7])))])
    assert row.num_tokens == 0


def test_nothing_is_returned_when_nobody_wants_logits() -> None:
    runner = runner_of(EMBEDDED)
    row = runner.open(4)
    logits = runner.forward([Chunk(row, runner.embed(torch.tensor([5, 6])), wants_logits=False)])
    assert logits.shape == (0, 1024)
    assert row.num_tokens == 2


def test_embeddings_are_those_of_torch_and_places_of_pictures_are_finite() -> None:
    runner = runner_of(EMBEDDED)
    ids = torch.tensor([1, -200, 700])
    rows = runner.embed(ids)
    weight = loaded(EMBEDDED).model.get_input_embeddings().weight
    assert torch.equal(rows[[0, 2]], weight[[1, 700]])
    assert rows[1].isfinite().all()
    assert rows.dtype == torch.float32


@pytest.mark.parametrize(
    "narrow",
    [
        {"cache_precision": "float16"},
        {"cache_precision": "uint8"},
        pytest.param({"precision": "bfloat16", "num_threads": 2}, marks=NEEDS_BFLOAT16),
    ],
)
def test_narrow_caches_share_and_copy_blocks_too(narrow: dict[str, Any]) -> None:
    options = OpenVinoOptions(**{"num_threads": 1} | narrow)
    runner = runner_of(EMBEDDED, options=options)
    embeds = runner.embed(torch.arange(3, 80))
    row = runner.open(100)
    whole = runner.forward([Chunk(row, embeds)])
    other = runner.open(100, source=row, num_shared=50)
    shared = runner.forward([Chunk(other, embeds[50:])])
    assert (whole - shared).abs().max().item() < 0.1 * whole.abs().max().item()
    assert whole.argmax() == shared.argmax()


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_threads", 0), ("cache_bytes", 0), ("cache_precision", "int3"), ("activation_group", -1)],
)
def test_options_out_of_bounds_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        OpenVinoOptions(**{field: value})  # type: ignore[arg-type]


def test_bfloat16_is_refused_where_the_machine_cannot_and_beside_another_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="cache_precision is 'uint8' and precision 'bfloat16'"):
        OpenVinoOptions(precision="bfloat16", cache_precision="uint8")
    monkeypatch.setattr(support, "cpu_computes_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="no units for bfloat16"):
        runner_of(EMBEDDED, options=OpenVinoOptions(precision="bfloat16"))
    monkeypatch.setattr(support, "cpu_computes_bfloat16", lambda: True)
    with pytest.raises(ConfigError, match="two threads"):
        runner_of(EMBEDDED, options=OpenVinoOptions(num_threads=1, precision="bfloat16"))


def test_a_cache_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache_bytes is 100"):
        runner_of(EMBEDDED, options=OpenVinoOptions(cache_bytes=100))


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from llava.engine.openvino.runner import OpenVinoRunner
runner = OpenVinoRunner(Path(sys.argv[1]), weight_format="float32", context_length=64)
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("while it is there"))
os.kill(os.getpid(), signal.SIGTERM)
del runner
os.kill(os.getpid(), signal.SIGTERM)
print(len(heard))
"""


def test_signals_are_heard_with_a_runner_and_after_it() -> None:
    command = [sys.executable, "-c", SIGNALLED, str(converted(CLIP, "float32"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
