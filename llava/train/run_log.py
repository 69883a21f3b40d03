"""Everything a run tells about itself while it goes: the one object that rank 0's loop talks to.

    OUTPUT/metrics.jsonl    one line per step, each step once, however often the run was resumed
    OUTPUT/events.jsonl     what happened besides: start, resume, validation, probe, warning, save, end
    OUTPUT/run.json         what does not change: recipe, data, parts that learn, machine

`report` makes report.html from these three files alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.files import read_json, write_json
from llava.train.metrics import METRICS_FILE, LossSums, MetricsFile, StepRecord, metrics_line
from llava.train.progress import Progress
from llava.train.reporters import Reporter, scalars
from llava.train.telemetry import Telemetry

EVENTS_FILE = "events.jsonl"
RUN_FILE = "run.json"
_UNDONE = {"validation", "probe", "hint"}
"""Events of steps that are taken back on resume, since they come again."""


class RunLog:
    """Writes the files, moves the progress line, feeds reporters. Every call belongs to rank 0."""

    def __init__(
        self,
        output_dir: Path,
        *,
        telemetry: Telemetry | None = None,
        progress: Progress | None = None,
        reporters: Sequence[Reporter] = (),
        logging_steps: int = 1,
    ) -> None:
        self.output_dir = output_dir
        self._metrics = MetricsFile(output_dir / METRICS_FILE)
        self._events = MetricsFile(output_dir / EVENTS_FILE)
        self._telemetry = telemetry or Telemetry()
        self._progress = progress
        self._reporters = list(reporters)
        self._logging_steps = max(1, logging_steps)
        self._step = 0
        self._is_closed = False

    def resume(self, step: int) -> None:
        """Take back everything after `step`, the last one whose weights are kept; 0 begins anew.

        Raises FileError when metrics.jsonl is broken elsewhere than in its last line.
        """
        undone = self._metrics.keep(lambda line: int(line["step"]) <= step)
        if step == 0:
            self._events.keep(lambda _: False)
        else:
            self._events.keep(lambda line: line["kind"] not in _UNDONE or int(line["step"]) <= step)
        self._step = step
        self.event("resume" if step else "start", steps_taken_back=undone)

    def step(self, record: StepRecord) -> dict[str, float]:
        """Write a step; returns its rates (see `Telemetry.rates`)."""
        self._step = record.step
        rates = self._telemetry.rates(record)
        line = metrics_line(record, rates)
        self._metrics.append(line)
        if record.step % self._logging_steps == 0:
            self._report(record.step, scalars(line, "train"))
        if self._progress is not None:
            self._progress.step(record, rates)
        hint = self._telemetry.hint()
        if hint is not None:
            self.event("hint", text=hint)
            self._say(f"hint: {hint}")
        return rates

    def validation(self, step: int, losses: LossSums) -> None:
        """Write the validation loss after `step`."""
        values = {"loss": losses.loss, "num_targets": losses.num_targets, "loss_by_source": losses.losses}
        self.event("validation", step=step, **values)
        self._report(step, scalars(values, "eval"))
        parts = "" if len(losses.losses) < 2 else "  " + _listed(losses.losses)
        self._say(f"validation after step {step}: loss {losses.loss:.4f}{parts}")

    def probe(self, step: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Write and show the probe's answers, as `ProbeAnswer.as_json` gives them."""
        self.event("probe", step=step, answers=list(answers))
        rows = ["| question | expected | got |", "|---|---|---|"]
        for answer in answers:
            texts = (str(answer["question"]), str(answer["expected"]), str(answer["got"]))
            rows.append("| " + " | ".join(_cell(text) for text in texts) + " |")
            asked, expected, got = map(_one_line, texts)
            self._say(f"asked:    {asked}\nexpected: {expected}\ngot:      {got}")
        for reporter in self._reporters:
            reporter.text(step, "probe", "\n".join(rows))

    def warn(self, text: str) -> None:
        """Show a warning and keep it for the report."""
        self.event("warning", text=text)
        self._say(f"warning: {text}")

    def event(self, kind: str, *, step: int | None = None, **values: Any) -> None:
        """Write that something happened, as `kind` "save" with its folder; step: the last one done."""
        at = self._step if step is None else step
        self._events.append({"kind": kind, "step": at, "time": time.time(), **values})

    def describe(self, **sections: Any) -> None:
        """Set sections of run.json: recipe, data, learns, machine, ... (see `report.Run`); others stay."""
        path = self.output_dir / RUN_FILE
        old = read_json(path) if path.exists() else {}
        write_json(path, {**old, **sections})

    def sync(self) -> None:
        """Force what was written to the disk; call before a checkpoint is marked complete."""
        self._metrics.sync()
        self._events.sync()

    def close(self, outcome: str = "finished") -> None:
        """Write how the run ended and close everything; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.event("end", outcome=outcome)
        self.sync()
        self._metrics.close()
        self._events.close()
        if self._progress is not None:
            self._progress.close()
        for reporter in self._reporters:
            reporter.close()

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        for reporter in self._reporters:
            reporter.log(step, values)

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)


def _listed(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _one_line(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
