"""Where figures go besides metrics.jsonl: TensorBoard and Weights & Biases, by `report_to`."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from llava.errors import ConfigError, DependencyError

NAMES = ("tensorboard", "wandb")
TENSORBOARD_FOLDER = "tensorboard"
WANDB_PROJECT = "llava"


class Reporter(Protocol):
    """Takes figures by name, such as "train/loss"."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""

    def text(self, step: int, name: str, text: str) -> None:
        """Take a text in Markdown."""

    def close(self) -> None:
        """Write what is not written yet."""


def reporter_names(report_to: Iterable[str]) -> tuple[str, ...]:
    """Return which reporters `report_to` means: "none", "all" (those that are installed) or names.

    Raises ConfigError for a name that is not known.
    """
    names: list[str] = []
    for name in report_to:
        if name == "all":
            names += [known for known in NAMES if importlib.util.find_spec(known) is not None]
        elif name in NAMES:
            names.append(name)
        elif name != "none":
            raise ConfigError.of_field("run.report_to", name, ("none", "all", *NAMES))
    return tuple(dict.fromkeys(names))


def make_reporters(
    report_to: Iterable[str],
    output_dir: Path,
    *,
    run_name: str | None = None,
    config: Mapping[str, Any] | None = None,
    first_step: int = 0,
    wandb: Any = None,
) -> list[Reporter]:
    """Open the reporters that `report_to` names; first_step: steps done before (resumed).

    wandb: the package or what stands for it; None imports it. Raises ConfigError, DependencyError.
    """
    reporters: list[Reporter] = []
    for name in reporter_names(report_to):
        if name == "tensorboard":
            reporters.append(TensorBoardReporter(output_dir / TENSORBOARD_FOLDER, first_step=first_step))
        else:
            package = wandb if wandb is not None else _import_wandb()
            reporters.append(WandbReporter(package, output_dir, run_name=run_name, config=config))
    return reporters


class TensorBoardReporter:
    """Writes event files into a folder for `tensorboard --logdir`."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise DependencyError.of_extra("tensorboard", "report", "run.report_to tensorboard") from None
        # Steps after the one resumed from were shown before a crash: TensorBoard forgets them.
        purge_step = first_step + 1 if first_step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Take a text in Markdown."""
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


class WandbReporter:
    """Sends figures to Weights & Biases; a run folder is one run there, however often it is resumed.

    Where it goes is set as its users set it: WANDB_PROJECT, WANDB_MODE=offline and the like.
    """

    def __init__(
        self, wandb: Any, output_dir: Path, *, run_name: str | None, config: Mapping[str, Any] | None
    ) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        id_file = output_dir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(wandb.util.generate_id() + "\n", encoding="ascii")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            name=run_name or output_dir.name,
            id=id_file.read_text(encoding="ascii").strip(),
            resume="allow",
            dir=str(output_dir),
            config=dict(config or {}),
        )
        # W&B drops what has an earlier step than its last, as after a crash; a step of our own is kept.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        self._run.log({**values, "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        """Take a text in Markdown."""
        self._run.log({name: text, "step": step})

    def close(self) -> None:
        """Write what is not written yet."""
        self._run.finish()


def scalars(line: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Flatten a line of figures to names such as "train/loss_by_source/vqa"; only numbers are kept."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            flat.update(scalars(value, f"{prefix}/{key}"))
        elif isinstance(value, int | float) and key != "step" and math.isfinite(value):
            flat[f"{prefix}/{key}"] = float(value)
    return flat


def _import_wandb() -> Any:
    try:
        return import_module("wandb")
    except ImportError:
        raise DependencyError.of_extra("wandb", "report", "run.report_to wandb") from None
