"""TensorBoard's own files read back, and Weights & Biases' calls as its package takes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from llava.errors import ConfigError, DependencyError
from llava.train.metrics import LossSums, StepRecord
from llava.train.reporters import make_reporters, reporter_names, scalars
from llava.train.run_log import RunLog


class FakeWandb:
    """The few names of the package `wandb` that are used, recording what comes."""

    class util:
        @staticmethod
        def generate_id() -> str:
            return "abc123"

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.is_finished = False

    def init(self, **arguments: Any) -> FakeWandb:
        self.opened.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.is_finished = True


def record(step: int) -> StepRecord:
    return StepRecord(
        step,
        2.0 / step,
        0.5,
        1.5,
        num_tokens=10,
        seconds=0.1,
        loss_by_source={"vqa": (4.0, 2), "text": (1.0, 1)},
    )


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ((), ()),
        (("none",), ()),
        (("tensorboard",), ("tensorboard",)),
        (("wandb", "tensorboard", "wandb"), ("wandb", "tensorboard")),
    ],
)
def test_reporters_are_named_as_in_transformers(given: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert reporter_names(given) == names


def test_all_means_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "wandb" else None)
    assert reporter_names(["all"]) == ("wandb",)


def test_an_unknown_reporter_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'tensorboard'"):
        make_reporters(["tensorbord"], tmp_path)


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"{name} is not installed.*\[report\]"):
        make_reporters([name], tmp_path)


def test_wandb_gets_figures_under_their_own_step_and_one_run_for_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        wandb = FakeWandb()
        reporters = make_reporters(["wandb"], tmp_path, run_name="r", config={"seed": 1}, wandb=wandb)
        log = RunLog(tmp_path, reporters=reporters, logging_steps=2)
        log.resume(0)
        for step in (1, 2, 3, 4):
            log.step(record(step))
        losses = LossSums()
        losses.add_sum("vqa", 3.0, 2)
        log.validation(4, losses)
        log.probe(4, [{"question": "Who | what?", "expected": "a\nb", "got": "c"}])
        log.close()
        assert wandb.is_finished
        assert [(one["id"], one["resume"], one["name"], one["config"]) for one in wandb.opened] == [
            ("abc123", "allow", "r", {"seed": 1})
        ]
    assert wandb.metrics == [("step", None), ("*", "step")]
    steps = [line for line in wandb.logged if "train/loss" in line]
    assert [(line["step"], line["train/loss"]) for line in steps] == [(2, 1.0), (4, 0.5)]
    assert steps[0]["train/loss_by_source/vqa"] == 2.0
    assert {
        "step": 4,
        "eval/loss": 1.5,
        "eval/num_targets": 2.0,
        "eval/loss_by_source/vqa": 1.5,
    } in wandb.logged
    assert "| Who \\| what? | a b | c |" in wandb.logged[-1]["probe"]


def test_tensorboard_forgets_steps_that_a_resumed_run_takes_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((0, 5), (3, 6)):
        log = RunLog(tmp_path, reporters=make_reporters(["tensorboard"], tmp_path, first_step=first))
        log.resume(first)
        for step in range(first + 1, last + 1):
            log.step(record(step))
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = events.Scalars("train/loss")
    assert [one.step for one in found] == [1, 2, 3, 4, 5, 6]
    assert [one.value for one in found] == pytest.approx([2.0 / step for step in range(1, 7)])
    assert "train/loss_by_source/text" in events.Tags()["scalars"]


def test_only_finite_numbers_are_reported() -> None:
    line = {"step": 3, "loss": 1.0, "text": "x", "mfu": float("nan"), "by": {"a": 2, "b": None}}
    assert scalars(line, "train") == {"train/loss": 1.0, "train/by/a": 2.0}
