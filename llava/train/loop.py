"""The training loop: micro-batches in, optimizer steps out, on any engine.

One step: the targets of all its micro-batches on all ranks are counted, every micro-batch's summed loss is
divided by that count and sent backward, the engine adds gradients up, clips and moves the weights. So the
gradient is that of the mean over all supervised tokens of the step, however the samples are spread.

Everything random is seeded by (seed, step, rank): a run that goes on from a checkpoint is the run that was
not interrupted, to the bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

import torch

from llava.data.batch import Batch
from llava.log import get_logger
from llava.train.forward import Losses
from llava.train.metrics import LossSums, StepRecord, check_finite, not_finite_samples
from llava.train.parallel.engine import Engine
from llava.train.telemetry import peak_memory_bytes

_logger = get_logger(__name__)

REPEAT_S = 2.0
"""A launcher passes on a signal that its whole process group got: twice within this time is once."""

Ending = Literal["finished", "stopped"]


class StepData(Protocol):
    """This rank's part of one optimizer step."""

    @property
    def step(self) -> int:
        """From 0."""

    @property
    def batches(self) -> Sequence[Batch]:
        """As many on every rank."""

    @property
    def wait_s(self) -> float:
        """Seconds the trainer waited for it."""

    @property
    def num_skipped(self) -> int:
        """Samples of this rank's part that could not be used."""


@dataclass(frozen=True)
class LoopOptions:
    """What the loop itself decides by."""

    num_steps: int
    steps_per_epoch: float
    seed: int
    max_grad_norm: float
    loss_reduction: Literal["tokens", "original"]
    save_steps: int
    """Steps between checkpoints; 0: at the end only."""
    eval_steps: int
    """Steps between validations; 0: none under way."""
    sources: tuple[str, ...]
    """Names of the data's parts, for loss by source."""
    rate_names: tuple[str, ...] = ()
    """What the parameter groups are called; groups of one name have one rate."""

    def names_of_rates(self, rates: Sequence[float]) -> dict[str, float]:
        """Return the learning rates by name."""
        return dict(zip(self.rate_names, rates, strict=True)) if self.rate_names else {}


@dataclass
class Loop:
    """A run in progress."""

    engine: Engine
    options: LoopOptions
    output_dir: Path
    learning_rates: Callable[[int], Sequence[float]]
    """Rate of each parameter group in a step."""
    on_step: Callable[[StepRecord], None]
    on_save: Callable[[int], None]
    """Called with the number of finished steps."""
    on_eval: Callable[[int], None] = lambda _: None
    is_stopping: bool = field(default=False, init=False)

    def run(self, data: Iterable[StepData]) -> Ending:
        """Run the steps of `data`, which begin where the run is; returns whether the end was reached.

        SIGTERM and SIGINT end it after the step under way, with a checkpoint. Raises TrainingError for a loss
        that is not finite.
        """
        done = -1
        with self._stopping_on_signals():
            for step_data in data:
                stops = self._step(step_data)
                done = step_data.step + 1
                is_last = done == self.options.num_steps
                if is_last or stops or _is_due(done, self.options.save_steps):
                    self.on_save(done)
                if not is_last and not stops and _is_due(done, self.options.eval_steps):
                    self.on_eval(done)
                if stops and not is_last:
                    return "stopped"
        return "finished"

    def _step(self, data: StepData) -> bool:
        """Make one optimizer step; returns whether some rank was told to stop."""
        begin = time.perf_counter()
        seed_everything(self.options.seed, data.step, self.engine.rank)
        counts = _Counts.of(data, self.is_stopping).summed(self.engine)
        loss, sums, guilty = self._accumulate(data, counts)
        computed = time.perf_counter()
        rates = list(self.learning_rates(data.step))
        totals = self.engine.sum(
            torch.tensor([loss, *_to_row(sums, self.options.sources)], dtype=torch.float64)
        ).tolist()
        # A norm that is not finite changes no weights, so that the error finds them as they were.
        grad_norm = self.engine.step(max_grad_norm=self.options.max_grad_norm, lrs=rates)
        self._check(data, totals[0], grad_norm, guilty)
        end = time.perf_counter()
        self.on_step(
            StepRecord(
                step=data.step + 1,
                loss=totals[0],
                learning_rate=rates[0],
                grad_norm=grad_norm,
                epoch=(data.step + 1) / self.options.steps_per_epoch,
                learning_rates=self.options.names_of_rates(rates),
                num_targets=counts.targets,
                num_tokens=counts.tokens,
                num_padded=counts.positions - counts.tokens,
                num_samples=counts.samples,
                num_pictures=counts.pictures,
                num_skipped=counts.skipped,
                num_attention_pairs=counts.pairs,
                seconds=end - begin + data.wait_s,
                data_wait_s=data.wait_s,
                compute_s=computed - begin,
                communication_s=end - computed if self.engine.world_size > 1 else 0.0,
                loss_by_source=_from_row(totals[1:], self.options.sources),
                peak_memory_bytes=peak_memory_bytes(self.engine.device),
            )
        )
        return counts.stops > 0

    def _accumulate(self, data: StepData, counts: _Counts) -> tuple[float, LossSums, list[str]]:
        """Send each micro-batch forward and backward; returns this rank's loss, and samples without one."""
        sums, loss_sum = LossSums(), 0.0
        guilty: list[str] = []
        for number, batch in enumerate(data.batches):
            is_last = number == len(data.batches) - 1
            losses: Losses = self.engine.forward(batch.to(self.engine.device), is_last=is_last)
            loss = losses.total / self._divisor(batch, counts, len(data.batches))
            self.engine.backward(loss, is_last=is_last)
            loss_sum += loss.detach().item()
            sums.add(batch, losses.per_token)
            if not math.isfinite(loss_sum):
                guilty += not_finite_samples(batch, losses.per_token)
        return loss_sum, sums, guilty

    def _check(self, data: StepData, loss: float, grad_norm: float, guilty: list[str]) -> None:
        """Raise TrainingError naming the step's samples when the loss or its gradient is not finite."""
        if math.isfinite(loss) and (math.isfinite(grad_norm) or self.engine.is_rescaling):
            return
        own = ([name for batch in data.batches for name in batch.ids], guilty)
        gathered = [own] * self.engine.world_size
        if self.engine.world_size > 1:
            torch.distributed.all_gather_object(gathered, own)
        check_finite(
            loss,
            grad_norm,
            [name for ids, _ in gathered for name in ids],
            step=data.step + 1,
            output_dir=self.output_dir,
            not_finite=[name for _, names in gathered for name in names],
            rank=self.engine.rank,
        )

    def _divisor(self, batch: Batch, counts: _Counts, num_micro: int) -> float:
        """Return what a micro-batch's summed loss is divided by."""
        if self.options.loss_reduction == "original":
            # The plain mean of the micro-batches' means, over micro-steps and ranks.
            return max(1, batch.num_targets) * num_micro * self.engine.world_size
        return max(1, counts.targets)

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Note SIGTERM and SIGINT; a second one, later, ends the process at once."""
        first = math.inf

        def note_signal(number: int, _: FrameType | None) -> None:
            nonlocal first
            if not self.is_stopping:
                first = time.monotonic()
                _logger.warning("%s: stopping after this step", signal.Signals(number).name)
                self.is_stopping = True
            elif time.monotonic() - first > REPEAT_S:
                signal.signal(number, previous[number])
                signal.raise_signal(number)

        watched = (signal.SIGTERM, signal.SIGINT)
        previous: dict[int, Any] = {number: signal.getsignal(number) for number in watched}
        for number in watched:
            signal.signal(number, note_signal)
        try:
            yield
        finally:
            for number in watched:
                signal.signal(number, previous[number])


class _Counts(NamedTuple):
    """What a step holds, over all ranks."""

    targets: int
    tokens: int
    positions: int
    samples: int
    pictures: int
    pairs: int
    """Pairs of positions that see each other."""
    skipped: int
    stops: int
    """Ranks that were told to stop."""

    @classmethod
    def of(cls, data: StepData, is_stopping: bool) -> _Counts:
        """Count this rank's part."""
        batches = data.batches
        return cls(
            targets=sum(batch.num_targets for batch in batches),
            tokens=sum(batch.num_tokens for batch in batches),
            positions=sum(batch.input_ids.numel() for batch in batches),
            samples=sum(len(batch.ids) for batch in batches),
            pictures=sum(len(batch.pixel_values) for batch in batches),
            pairs=sum(length * (length + 1) // 2 for batch in batches for length in batch.lengths),
            skipped=data.num_skipped,
            stops=int(is_stopping),
        )

    def summed(self, engine: Engine) -> _Counts:
        """Return the sums over ranks."""
        totals = engine.sum(torch.tensor(self, dtype=torch.float64)).tolist()
        return _Counts(*(int(total) for total in totals))


def _to_row(sums: LossSums, sources: Sequence[str]) -> list[float]:
    """Return sum and count of each source, one after the other."""
    pairs = (sums.by_source.get(source, (0.0, 0)) for source in sources)
    return [float(value) for pair in pairs for value in pair]


def _from_row(row: Sequence[float], sources: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Undo `_to_row`; sources without targets are left out."""
    pairs = zip(sources, row[::2], row[1::2], strict=True)
    return {source: (total, int(count)) for source, total, count in pairs if count}


def seed_everything(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one rank; nothing random then depends on the past."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
