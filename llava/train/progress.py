"""What the person at the terminal sees: one moving line on a terminal, a line per logging_steps elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, TextIO

from tqdm import tqdm

from llava.command import note
from llava.train.metrics import StepRecord

RATE_WINDOW = 50
"""Steps whose pace the time left is reckoned from: a slow first step must not spoil it for hours."""


class Progress:
    """Shows steps done of all, the time left, loss, learning rate and tokens per second."""

    def __init__(
        self,
        total: int,
        *,
        first_step: int = 0,
        logging_steps: int = 1,
        stream: TextIO | None = None,
        write: Callable[[str], None] = note,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """total: steps of the whole run; first_step: steps done before (resumed).

        stream: where a moving line goes if it is a terminal (stderr); write: where lines go else.
        """
        self.total = total
        self.logging_steps = max(1, logging_steps)
        self._write = write
        self._clock = clock
        self._times: deque[tuple[int, float]] = deque([(first_step, clock())], maxlen=RATE_WINDOW + 1)
        stream = stream if stream is not None else sys.stderr
        self._bar: tqdm[Any] | None = None
        if stream.isatty():
            self._bar = tqdm(total=total, initial=first_step, file=stream, unit="step", dynamic_ncols=True)

    def step(self, record: StepRecord, rates: Mapping[str, float]) -> None:
        """Show a step."""
        self._times.append((record.step, self._clock()))
        if self._bar is not None:
            self._bar.set_postfix_str(_figures(record, rates), refresh=False)
            self._bar.update(record.step - self._bar.n)
        elif record.step % self.logging_steps == 0 or record.step in (1, self.total):
            left = duration(self.seconds_left())
            self._write(f"step {record.step}/{self.total}  {left} left  {_figures(record, rates)}")

    def seconds_left(self) -> float:
        """Return the time left at the pace of the last RATE_WINDOW steps; saves and validation included."""
        (first, begin), (last, end) = self._times[0], self._times[-1]
        return (end - begin) / (last - first) * (self.total - last) if last > first else 0.0

    def say(self, text: str) -> None:
        """Write a line of its own without tearing the moving one."""
        if self._bar is not None:
            self._bar.clear()
        self._write(text)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()


def _figures(record: StepRecord, rates: Mapping[str, float]) -> str:
    figures = [f"loss {record.loss:.4f}", f"lr {record.learning_rate:.2e}", f"norm {record.grad_norm:.2f}"]
    if "tokens_per_second" in rates:
        figures.append(f"{rates['tokens_per_second']:,.0f} tok/s")
    if "mfu" in rates:
        figures.append(f"MFU {rates['mfu']:.0%}")
    return "  ".join(figures)


def duration(seconds: float) -> str:
    """Return "45 s", "12 min 05 s", "3 h 07 min" or "124 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 100 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{round(whole / 3600)} h"
