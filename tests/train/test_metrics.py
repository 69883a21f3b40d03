"""The run's files: every step once and to the bit, whatever ends a run, and a loss that is no number."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from llava.data.batch import Batch
from llava.errors import FileError, TrainingError
from llava.train.metrics import (
    LossSums,
    MetricsFile,
    StepRecord,
    check_finite,
    not_finite_samples,
    read_lines,
)
from llava.train.run_log import RunLog


def record(step: int, **fields: float) -> StepRecord:
    values = {"loss": 1 / (step + 2), "learning_rate": 2e-5 / 3, "grad_norm": math.pi * step}
    return StepRecord(step=step, num_tokens=100, num_targets=30, seconds=0.5, **values | fields)  # type: ignore[arg-type]


def log_steps(folder: Path, first: int, last: int) -> None:
    log = RunLog(folder)
    for step in range(first, last + 1):
        log.step(record(step))
    log.close()


def steps_in(folder: Path) -> list[int]:
    return [line["step"] for line in read_lines(folder / "metrics.jsonl")]


def batch_of(targets: tuple[int, ...], sources: tuple[str, ...]) -> Batch:
    row = torch.zeros(1, sum(targets) + 1, dtype=torch.int64)
    return Batch(
        input_ids=row,
        labels=row,
        position_ids=row,
        attention_mask=None,
        segments=(row.shape[1],),
        pixel_values=torch.zeros(0, 3, 2, 2),
        num_targets=sum(targets),
        num_tokens=row.shape[1],
        ids=tuple(f"s{index}" for index in range(len(targets))),
        sources=sources,
        targets_per_sample=targets,
    )


def test_figures_are_read_back_to_the_bit_and_the_four_named_ones_come_first(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 3)
    lines = list(read_lines(tmp_path / "metrics.jsonl"))
    assert [list(line)[:4] for line in lines] == [["step", "loss", "learning_rate", "grad_norm"]] * 3
    assert [line["loss"] for line in lines] == [record(step).loss for step in (1, 2, 3)]
    assert [line["grad_norm"] for line in lines] == [math.pi * step for step in (1, 2, 3)]
    assert lines[0]["learning_rate"] == 2e-5 / 3


def test_a_step_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.step(record(1))
    assert steps_in(tmp_path) == [1]
    log.close()


def test_loss_by_source_is_written_as_means(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.step(
        StepRecord(1, 1.0, 0.1, 1.0, loss_by_source={"vqa": (6.0, 4), "text": (1.0, 2), "none": (0.0, 0)})
    )
    log.close()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["loss_by_source"] == {"vqa": 1.5, "text": 0.5}
    assert line["targets_by_source"] == {"vqa": 4, "text": 2, "none": 0}


def test_resuming_drops_what_came_after_the_step(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 9)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    log = RunLog(tmp_path)
    log.resume(4)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before[:4]
    for step in range(5, 8):
        log.step(record(step))
    log.close()
    assert steps_in(tmp_path) == list(range(1, 8))
    resumed = [line for line in read_lines(tmp_path / "events.jsonl") if line["kind"] == "resume"]
    assert [(line["step"], line["steps_taken_back"]) for line in resumed] == [(4, 5)]


def test_beginning_anew_in_an_old_folder_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 5)
    log = RunLog(tmp_path)
    log.resume(0)
    log.step(record(1))
    log.close()
    assert steps_in(tmp_path) == [1]
    assert [line["kind"] for line in read_lines(tmp_path / "events.jsonl")] == ["start", "end"]


def test_validations_after_the_resumed_step_are_taken_back_and_warnings_are_not(tmp_path: Path) -> None:
    log, losses = RunLog(tmp_path), LossSums()
    losses.add_sum("a", 3.0, 2)
    log.step(record(1))
    log.validation(1, losses)
    log.step(record(2))
    log.validation(2, losses)
    log.warn("a picture is missing")
    log.resume(1)
    log.close()
    kinds = [(line["kind"], line["step"]) for line in read_lines(tmp_path / "events.jsonl")]
    assert kinds == [("validation", 1), ("warning", 2), ("resume", 1), ("end", 1)]


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_line_that_a_crash_cut_is_repaired(tmp_path: Path, cut: int) -> None:
    log_steps(tmp_path, 1, 4)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert steps_in(tmp_path) == [1, 2, 3]
    log = RunLog(tmp_path)
    log.resume(3)
    log.step(record(4))
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert path.read_text().count("\n") == 4


def test_a_cut_line_is_repaired_even_when_nobody_resumes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    lines = MetricsFile(path)
    lines.append({"a": 3})
    lines.close()
    assert [line["a"] for line in read_lines(path)] == [1, 3]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(FileError, match="line 2"):
        list(read_lines(path))


def test_what_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    lines = MetricsFile(tmp_path / "x.jsonl")
    lines.append({"loss": math.nan, "norms": {"a": math.inf, "b": 1.0}})
    lines.close()
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"loss": None, "norms": {"a": None, "b": 1.0}}


def test_sections_of_the_run_are_set_one_by_one(tmp_path: Path) -> None:
    RunLog(tmp_path).describe(recipe={"run": {"seed": 1}}, data={"num_samples": 3})
    RunLog(tmp_path).describe(data={"num_samples": 4})
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "recipe": {"run": {"seed": 1}},
        "data": {"num_samples": 4},
    }


@pytest.mark.parametrize(
    ("loss", "norm", "what"), [(math.nan, 1.0, "loss"), (1.0, math.inf, "gradient norm")]
)
def test_a_loss_or_norm_that_is_no_number_names_the_samples_of_the_step(
    tmp_path: Path, loss: float, norm: float, what: str
) -> None:
    with pytest.raises(TrainingError, match=f"the {what} of step 7 .* its samples are a, b") as raised:
        check_finite(loss, norm, ["a", "b"], step=7, output_dir=tmp_path)
    assert str(tmp_path / "bad_step.json") in raised.value.remedy
    written = json.loads((tmp_path / "bad_step.json").read_text())
    assert written["ids"] == ["a", "b"]
    assert written["step"] == 7


def test_the_sample_whose_own_loss_is_no_number_is_named_first(tmp_path: Path) -> None:
    batch = batch_of((2, 0, 3), ("x", "x", "x"))
    guilty = not_finite_samples(batch, torch.tensor([0.1, 0.2, 0.3, math.nan, 0.4]))
    assert guilty == ["s2"]
    with pytest.raises(TrainingError, match="losses of sample s2"):
        check_finite(math.nan, 1.0, batch.ids, step=1, output_dir=tmp_path, not_finite=guilty, rank=3)
    assert json.loads((tmp_path / "bad_step.rank3.json").read_text())["not_finite"] == ["s2"]


def test_finite_steps_pass_and_write_nothing(tmp_path: Path) -> None:
    check_finite(0.5, 3.0, ["a"], step=1, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_losses_are_added_by_source_over_batches_and_ranks() -> None:
    here, there = LossSums(), LossSums()
    here.add(batch_of((1, 2), ("vqa", "text")), torch.tensor([4.0, 1.0, 2.0]))
    here.add(batch_of((0, 1), ("text", "vqa")), torch.tensor([2.0]))
    there.add(batch_of((3,), ("caption",)), torch.tensor([1.0, 1.0, 4.0]))
    here.merge([there.by_source])
    assert here.losses == {"vqa": 3.0, "text": 1.5, "caption": 2.0}
    assert here.num_targets == 7
    assert here.loss == pytest.approx(15 / 7)
    assert math.isnan(LossSums().loss)


def test_losses_that_do_not_fit_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="2 losses for 3 targets"):
        LossSums().add(batch_of((3,), ("a",)), torch.zeros(2))
