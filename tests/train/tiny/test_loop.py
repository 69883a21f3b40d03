"""The plain training loop: exact resumption, accumulation, schedule; and its optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from llava.train.muon import MuonWithAdamW, orthogonalise
from llava.train.tiny.loop import Loop, LoopConfig, make_optimizers

CONFIG = LoopConfig(num_steps=6, warmup_steps=2, log_every=100, checkpoint_every_s=1e9)


class Regression:
    """A task with `num_batches` micro-batches of unequal size per step, drawn from the step number."""

    def __init__(self, model: nn.Module, *, num_batches: int = 2) -> None:
        self.model, self.num_batches = model, num_batches

    def batches(self, step: int) -> list[torch.Tensor]:
        rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        return [rows] if self.num_batches == 1 else [rows[:2], rows[2:]]

    def num_targets(self, batch: torch.Tensor) -> int:
        return len(batch)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.model(batch) - batch.flip(1)).pow(2).sum()


def run(folder: Path, config: LoopConfig, *, num_batches: int = 2) -> Loop[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    optimizers = make_optimizers([(list(model.named_parameters()), 0.02)])
    loop = Loop(model, optimizers, Regression(model, num_batches=num_batches), config, folder)
    loop.train()
    return loop


def test_a_resumed_run_ends_with_the_very_weights_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(tmp_path / "a", CONFIG)
    one_step = Loop._one_step

    def stop_at_three(self: Loop[torch.Tensor]) -> float:
        if self.step == 3:
            self._checkpoint()
            raise KeyboardInterrupt
        return one_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_one_step", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", CONFIG)
    resumed = run(tmp_path / "b", CONFIG)
    assert resumed.step == unbroken.step == 6
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_accumulation_over_unequal_batches_changes_nothing(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "a", CONFIG, num_batches=1), run(tmp_path / "b", CONFIG)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, atol=2e-4, rtol=1e-3)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    loop = run(tmp_path, replace(CONFIG, num_steps=300))
    batch = torch.randn(50, 4, generator=torch.Generator().manual_seed(99))
    untrained = run(tmp_path / "none", replace(CONFIG, num_steps=0))
    assert loop.task.loss(batch) < 0.7 * untrained.task.loss(batch)


def test_the_learning_rate_warms_up_and_decays_to_its_final_share() -> None:
    config = LoopConfig(num_steps=100, warmup_steps=10, final_share=0.1)
    assert config.lr_share(0) == pytest.approx(0.1)
    assert config.lr_share(10) == pytest.approx(1.0)
    assert config.lr_share(100) == pytest.approx(0.1)
    assert all(config.lr_share(step) >= config.lr_share(step + 1) for step in range(10, 100))


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 20, 20)])
def test_muon_directions_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.5


def test_muon_with_adamw_goes_on_from_its_state() -> None:
    def make() -> tuple[nn.Linear, MuonWithAdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        groups = [
            {"params": [layer.weight], "is_matrix": True, "lr": 0.1},
            {"params": [layer.bias], "is_matrix": False, "lr": 0.1},
        ]
        return layer, MuonWithAdamW(groups)

    def move(layer: nn.Linear, optimizer: MuonWithAdamW, seed: int) -> None:
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        layer(data).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, first = make(), make()
    for seed in range(4):
        move(*whole, seed)
    for seed in range(2):
        move(*first, seed)
    second = make()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    for seed in range(2, 4):
        move(*second, seed)
    assert torch.equal(second[0].weight, whole[0].weight)
    assert torch.equal(second[0].bias, whole[0].bias)
    assert [group["is_matrix"] for group in second[1].param_groups] == [True, False]
