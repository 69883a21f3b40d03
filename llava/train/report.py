"""report.html: one file that says what a run was, what it learnt and what it cost.

    python -m llava.train.report RUN_FOLDER

Everything is read from the folder's run.json, metrics.jsonl and events.jsonl, so the report of a run that
crashed, is still going, or was made elsewhere can be written at any time. `report_page` is how it looks.
"""

from __future__ import annotations

import argparse
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava import command
from llava.errors import FileError
from llava.files import read_json, write_text
from llava.train.metrics import METRICS_FILE, read_lines
from llava.train.run_log import EVENTS_FILE, RUN_FILE

REPORT_FILE = "report.html"


class Columns:
    """metrics.jsonl by column: 100 000 steps in some tens of MB. What a line has not is NaN."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._columns: dict[str, array[float]] = {}
        self.num_steps = 0
        for line in lines:
            self._add("", line)
            self.num_steps += 1
            for column in self._columns.values():
                if len(column) < self.num_steps:
                    column.append(math.nan)

    def _add(self, prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                self._add(f"{prefix}{key}/", value)
            elif isinstance(value, int | float):
                name = f"{prefix}{key}"
                if name not in self._columns:
                    self._columns[name] = array("d", [math.nan]) * self.num_steps
                self._columns[name].append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Sequence[float]:
        return self._columns.get(name, array("d", [math.nan]) * self.num_steps)

    def under(self, prefix: str) -> dict[str, Sequence[float]]:
        """Return the columns of a nested table, such as "loss_by_source"."""
        return {
            name.removeprefix(f"{prefix}/"): column
            for name, column in self._columns.items()
            if name.startswith(f"{prefix}/")
        }

    def total(self, name: str) -> float:
        """Return the sum of a column, what is missing left out."""
        return math.fsum(value for value in self[name] if math.isfinite(value))

    def last(self, name: str) -> float:
        """Return the last value that is a number, or NaN."""
        return next((value for value in reversed(self[name]) if math.isfinite(value)), math.nan)


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it."""

    name: str
    facts: Mapping[str, Any]
    """run.json: recipe, data, machine, learns; each may be missing."""
    columns: Columns
    events: Sequence[Mapping[str, Any]]

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of run.json, empty where it is missing."""
        found = self.facts.get(name)
        return found if isinstance(found, Mapping) else {}

    def events_of(self, *kinds: str) -> list[Mapping[str, Any]]:
        """Return the events of these kinds, in the order in which they happened."""
        return [event for event in self.events if event.get("kind") in kinds]

    @property
    def outcome(self) -> str:
        """How the last session ended; "running" when nothing says so (it may also have crashed)."""
        sessions = self.events_of("start", "resume", "end")
        is_over = bool(sessions) and sessions[-1]["kind"] == "end"
        return str(sessions[-1].get("outcome", "finished")) if is_over else "running"

    @property
    def num_devices(self) -> int:
        """Processes of the run."""
        return int(self.section("machine").get("num_devices", 1))

    @property
    def sessions(self) -> list[Session]:
        """The times the run was started or resumed."""
        sessions: list[Session] = []
        for event in self.events:
            if event.get("kind") in ("start", "resume"):
                begin = float(event["time"])
                sessions.append(Session(int(event["step"]), int(event["step"]), begin, begin, "running"))
            elif sessions:
                last = sessions[-1]
                outcome = str(event.get("outcome", "")) if event.get("kind") == "end" else last.outcome
                sessions[-1] = Session(
                    last.first_step, int(event["step"]), last.begin, float(event["time"]), outcome
                )
        return sessions


@dataclass(frozen=True)
class Session:
    """One start of the command, to its end or the last sign of life."""

    first_step: int
    """Steps done before."""
    last_step: int
    begin: float
    """Seconds since the epoch."""
    end: float
    outcome: str


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder; raises FileError when it is none or its files are broken."""
    if not (folder / METRICS_FILE).exists():
        raise FileError(
            f"{folder} holds no {METRICS_FILE}", remedy="Name the output folder of a training run."
        )
    facts = read_json(folder / RUN_FILE) if (folder / RUN_FILE).exists() else {}
    if not isinstance(facts, Mapping):
        raise FileError(f"{folder / RUN_FILE} is not a JSON object")
    events = list(read_lines(folder / EVENTS_FILE)) if (folder / EVENTS_FILE).exists() else []
    name = _name(facts) or folder.resolve().name
    return RunRecord(name, facts, Columns(read_lines(folder / METRICS_FILE)), _latest(events))


def _latest(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Drop validations and probes that were made again after the same step, as a resumed run does."""
    last = {(event.get("kind"), event.get("step")): number for number, event in enumerate(events)}
    return [
        event
        for number, event in enumerate(events)
        if event.get("kind") not in ("validation", "probe")
        or last[event.get("kind"), event.get("step")] == number
    ]


def write_report(folder: Path) -> Path:
    """Write OUTPUT/report.html from the run's files and return its path; raises FileError."""
    from llava.train.report_page import page

    path = folder / REPORT_FILE
    write_text(path, page(read_run(folder)))
    return path


def _name(facts: Mapping[str, Any]) -> str:
    recipe = facts.get("recipe")
    if not isinstance(recipe, Mapping):
        return ""
    run = recipe.get("run")
    return str((run.get("run_name") if isinstance(run, Mapping) else "") or recipe.get("name") or "")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of the folder that is named."""
    parser = command.OptionParser(
        prog="python -m llava.train.report",
        description="Write report.html from a training run's metrics.jsonl, events.jsonl and run.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="output folder of a training run")

    def write() -> int:
        command.say(str(write_report(parser.parse_all(argv).folder)))
        return command.EXIT_OK

    return command.run(write)


if __name__ == "__main__":
    raise SystemExit(main())
