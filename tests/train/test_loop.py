"""The loop over one process: the loss is the token mean, however samples are spread; signals; bad numbers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from llava.data.batch import Batch
from llava.errors import TrainingError
from llava.model.packed_attention import use_packed_attention
from llava.train.config import OptimizerOptions
from llava.train.forward import TrainingModel
from llava.train.loop import Loop, LoopOptions
from llava.train.metrics import StepRecord
from llava.train.optimizer import make_optimizer
from llava.train.parallel.single import SingleEngine
from tests.train.models import IMAGE_SIZE, Sample, packed, padded, random_samples, tiny_model

OPTIONS = LoopOptions(
    num_steps=4,
    steps_per_epoch=2,
    seed=1,
    max_grad_norm=1.0,
    loss_reduction="tokens",
    save_steps=2,
    eval_steps=0,
    sources=("data",),
)


@dataclass
class Step:
    step: int
    batches: Sequence[Batch]
    wait_s: float = 0.0
    num_skipped: int = 0


def steps(num_micro: int, *, first: int = 0, pad: bool = False) -> Iterator[Step]:
    """Yield four steps of eight samples each, spread over `num_micro` micro-batches."""
    make = padded if pad else packed
    for step in range(first, OPTIONS.num_steps):
        samples = random_samples(8, seed=step)
        yield Step(step, [make(samples[start::num_micro]) for start in range(num_micro)])


class Run:
    """A loop over a fresh tiny model that remembers what it was told."""

    def __init__(self, folder: Path, *, optimizer: str = "adamw", options: LoopOptions = OPTIONS) -> None:
        self.model = tiny_model()
        use_packed_attention(self.model.model.language_model)
        self.engine = SingleEngine(torch.device("cpu"))
        named = OptimizerOptions(name=optimizer)  # type: ignore[arg-type]
        self.engine.prepare(
            TrainingModel(self.model, image_size=IMAGE_SIZE),
            lambda module: make_optimizer(
                [{"params": list(module.parameters()), "lr": 1e-2, "weight_decay": 0.0}], named, module
            ),
        )
        self.records: list[StepRecord] = []
        self.saved: list[int] = []
        self.loop = Loop(
            engine=self.engine,
            options=options,
            output_dir=folder,
            learning_rates=lambda _: [1e-2] * len(self.engine.optimizer.param_groups),
            on_step=self.records.append,
            on_save=self.saved.append,
        )

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.records]


def test_losses_and_weights_do_not_depend_on_the_number_of_micro_batches(tmp_path: Path) -> None:
    runs = {}
    for num_micro in (1, 2, 4, 8):
        run = Run(tmp_path)
        assert run.loop.run(steps(num_micro)) == "finished"
        runs[num_micro] = run
    for run in runs.values():
        assert run.losses == pytest.approx(runs[1].losses, rel=1e-5)
        assert [record.grad_norm for record in run.records] == pytest.approx(
            [record.grad_norm for record in runs[1].records], rel=1e-5
        )
    assert runs[1].losses[0] != runs[1].losses[1]


def test_padded_and_packed_runs_are_the_same_run(tmp_path: Path) -> None:
    pad, pack = Run(tmp_path), Run(tmp_path)
    pad.loop.run(steps(2, pad=True))
    pack.loop.run(steps(2))
    assert pack.losses == pytest.approx(pad.losses, rel=1e-5)
    assert all(record.num_padded == 0 for record in pack.records)
    assert all(record.num_padded > 0 for record in pad.records)
    assert [r.num_tokens for r in pack.records] == [r.num_tokens for r in pad.records]
    assert [r.num_attention_pairs for r in pack.records] == [r.num_attention_pairs for r in pad.records]


def test_the_original_reduction_is_the_mean_of_the_micro_batches_means(tmp_path: Path) -> None:
    run = Run(tmp_path, options=replace(OPTIONS, loss_reduction="original"))
    step = next(steps(4))
    with torch.no_grad():
        training = TrainingModel(run.model, image_size=IMAGE_SIZE)
        means = [float(training(batch).total) / batch.num_targets for batch in step.batches]
    run.loop.run([step])
    assert run.losses[0] == pytest.approx(sum(means) / 4, rel=1e-6)


def test_muon_learns_and_gives_tables_and_norms_to_adamw(tmp_path: Path) -> None:
    run = Run(tmp_path, optimizer="muon")
    batch = packed(random_samples(8))
    run.loop.run([Step(step, [batch]) for step in range(4)])
    assert run.losses[-1] < run.losses[0] - 0.3
    groups = run.engine.optimizer.param_groups
    matrices = {id(p) for group in groups if group["is_matrix"] for p in group["params"]}
    assert id(run.model.model.language_model.layers[0].mlp.up_proj.weight) in matrices
    assert id(run.model.lm_head.weight) not in matrices
    assert id(run.model.get_input_embeddings().weight) not in matrices


def test_loss_by_source_adds_up_to_the_loss(tmp_path: Path) -> None:
    run = Run(tmp_path, options=replace(OPTIONS, sources=("a", "b")))
    batch = packed(random_samples(6))
    run.loop.run([Step(0, [replace(batch, sources=("a", "b", "a", "a", "b", "b"))])])
    sums = run.records[0].loss_by_source
    assert sum(count for _, count in sums.values()) == batch.num_targets
    mean = sum(total for total, _ in sums.values()) / batch.num_targets
    assert mean == pytest.approx(run.losses[0], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    run = Run(tmp_path)

    def interrupted() -> Iterator[Step]:
        for step in steps(1):
            if step.step == 0:
                os.kill(os.getpid(), number)
            yield step

    before = signal.getsignal(number)
    assert run.loop.run(interrupted()) == "stopped"
    assert run.saved == [1]
    assert signal.getsignal(number) is before


def test_checkpoints_are_asked_for_when_due_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, options=replace(OPTIONS, save_steps=3))
    run.loop.run(steps(1))
    assert run.saved == [3, 4]


def bad(sample: Sample) -> Batch:
    batch = packed([sample])
    return replace(batch, pixel_values=torch.full_like(batch.pixel_values, torch.nan), ids=("broken-7",))


def test_a_loss_that_is_not_a_number_names_its_samples_and_changes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(TrainingError, match="broken-7"):
        run.loop.run([Step(0, [bad(random_samples(1)[0])])])
    assert "broken-7" in json.loads((tmp_path / "bad_step.json").read_text())["ids"]
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_a_step_without_targets_counts_as_zero_loss_and_moves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.loop.run([Step(0, [packed([])])])
    assert run.losses == [0.0]
    assert run.records[0].grad_norm == 0.0
