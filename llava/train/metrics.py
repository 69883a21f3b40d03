"""What one optimizer step was, and the file that holds every step of a run: OUTPUT/metrics.jsonl.

The loop gives numbers that are already summed over ranks; nothing here knows of other processes, and only
rank 0 calls it. Floats are written as Python's repr has them, so that reading gives the same bits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from llava.data.batch import Batch
from llava.errors import FileError, TrainingError
from llava.files import atomic_path, write_json

METRICS_FILE = "metrics.jsonl"
BAD_STEP_FILE = "bad_step.json"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, over all ranks."""

    step: int
    """From 1."""
    loss: float
    learning_rate: float
    """Of the main parameter group, as used in this step."""
    grad_norm: float
    """Before clipping."""
    epoch: float = 0.0
    """Epochs done at the end of the step."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """By part, as used in this step."""
    num_targets: int = 0
    """Supervised tokens."""
    num_tokens: int = 0
    """Real positions, pictures' included, padding not."""
    num_padded: int = 0
    """Positions that were computed and are padding."""
    num_samples: int = 0
    num_pictures: int = 0
    num_skipped: int = 0
    """Samples left out because they were bad."""
    num_attention_pairs: int = 0
    """Sum over samples of L * (L + 1) / 2: pairs of positions that see each other."""
    seconds: float = 0.0
    """Wall time of the step, on rank 0."""
    data_wait_s: float = 0.0
    communication_s: float = 0.0
    compute_s: float = 0.0
    loss_by_source: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Source to (sum of token losses, supervised tokens)."""
    peak_memory_bytes: int = 0
    """Most memory held so far; see `telemetry.peak_memory_bytes`."""


def metrics_line(record: StepRecord, rates: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return what metrics.jsonl holds for a step; `rates` are telemetry's figures."""
    line: dict[str, Any] = {
        "step": record.step,
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "grad_norm": record.grad_norm,
        "epoch": record.epoch,
        "learning_rates": dict(record.learning_rates),
        "num_targets": record.num_targets,
        "num_tokens": record.num_tokens,
        "num_padded": record.num_padded,
        "num_samples": record.num_samples,
        "num_pictures": record.num_pictures,
        "num_skipped": record.num_skipped,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        **(rates or {}),
    }
    if record.loss_by_source:
        line["loss_by_source"] = {
            source: total / count for source, (total, count) in record.loss_by_source.items() if count
        }
        line["targets_by_source"] = {source: count for source, (_, count) in record.loss_by_source.items()}
    return line


class MetricsFile:
    """A JSONL file that is appended to line by line and survives a crash in the middle of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: TextIOWrapper | None = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line and hand it to the system; what is not finite becomes null, as JSON has no NaN."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.keep(lambda _: True)
            self._stream = self.path.open("a", encoding="utf-8")
        self._stream.write(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Force what was written to the disk; call before a checkpoint is marked complete."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> int:
        """Drop the lines for which `is_kept(line)` is false, and a partial last line; returns how many."""
        self.close()
        if not self.path.exists():
            return 0
        lines = list(read_lines(self.path))
        kept = [line for line in lines if is_kept(line)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        if len(kept) == len(lines) and self.path.stat().st_size == len(text.encode("utf-8")):
            return 0
        with atomic_path(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return len(lines) - len(kept)

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; a partial last line, as a crash leaves it, is left out.

    Raises FileError for a broken line elsewhere.
    """
    try:
        pieces = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise FileError(f"{path} does not exist", remedy="Name the folder of a training run.") from None
    *lines, _partial = pieces  # what follows the last newline was never finished
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise FileError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise FileError(f"{path} line {number} is not a JSON object")
        yield value


def check_finite(
    loss: float,
    grad_norm: float = 0.0,
    ids: Sequence[str] = (),
    *,
    step: int,
    output_dir: Path | None = None,
    not_finite: Sequence[str] = (),
    rank: int = 0,
) -> None:
    """Raise TrainingError when a step's loss or gradient norm is not a number, naming its samples.

    ids: of this rank's samples of the step. not_finite: those of them whose own loss is no number (see
    `not_finite_samples`), named before the others. With `output_dir` everything is also written to
    OUTPUT/bad_step.json, of other ranks to OUTPUT/bad_step.rank1.json and so on.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = "gradient norm" if math.isfinite(loss) else "loss"
    value = grad_norm if math.isfinite(loss) else loss
    remedy = (
        "Look at them with `llava doctor`, lower the learning rate, or train in bfloat16 or float32. "
        "The checkpoints before this step are sound."
    )
    if output_dir is not None:
        path = output_dir / (BAD_STEP_FILE if rank == 0 else f"bad_step.rank{rank}.json")
        write_json(
            path,
            {
                "step": step,
                "rank": rank,
                "loss": repr(loss),
                "grad_norm": repr(grad_norm),
                "not_finite": list(not_finite),
                "ids": list(ids),
            },
        )
        remedy = f"All are in {path}. {remedy}"
    raise TrainingError(f"the {what} of step {step} is {value}; {_named(not_finite, ids)}", remedy=remedy)


def not_finite_samples(batch: Batch, per_token: torch.Tensor) -> list[str]:
    """Return the ids of the samples whose token losses float32[T] are not all finite."""
    pieces = per_token.detach().split(list(batch.targets_per_sample))
    return [
        name for name, piece in zip(batch.ids, pieces, strict=True) if not bool(torch.isfinite(piece).all())
    ]


def _named(guilty: Sequence[str], ids: Sequence[str], limit: int = 8) -> str:
    names = guilty or ids
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    if guilty:
        return f"so are the losses of sample {shown}"
    return f"its samples are {shown}" if names else "its samples are on another rank"


class LossSums:
    """Token losses added up by source: training's loss by source, and the validation loss."""

    def __init__(self) -> None:
        self.by_source: dict[str, tuple[float, int]] = {}

    def add(self, batch: Batch, per_token: torch.Tensor) -> None:
        """Add a micro-batch; per_token: float32[T], its supervised tokens in order, row by row."""
        if len(per_token) != sum(batch.targets_per_sample):
            raise ValueError(f"{len(per_token)} losses for {sum(batch.targets_per_sample)} targets")
        if not len(per_token):
            return
        pieces = per_token.detach().double().cpu().split(list(batch.targets_per_sample))
        for source, piece in zip(batch.sources, pieces, strict=True):
            self.add_sum(source, float(piece.sum()), len(piece))

    def add_sum(self, source: str, total: float, count: int) -> None:
        """Add a sum over `count` tokens."""
        old_total, old_count = self.by_source.get(source, (0.0, 0))
        self.by_source[source] = (old_total + total, old_count + count)

    def merge(self, others: Iterable[Mapping[str, tuple[float, int]]]) -> None:
        """Add what other ranks have in their `by_source`."""
        for other in others:
            for source, (total, count) in other.items():
                self.add_sum(source, total, count)

    @property
    def num_targets(self) -> int:
        """Supervised tokens added."""
        return sum(count for _, count in self.by_source.values())

    @property
    def loss(self) -> float:
        """Mean over supervised tokens; NaN when there were none."""
        total = math.fsum(total for total, _ in self.by_source.values())
        return total / self.num_targets if self.num_targets else math.nan

    @property
    def losses(self) -> dict[str, float]:
        """Mean by source, sources without tokens left out."""
        return {name: total / count for name, (total, count) in self.by_source.items() if count}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
