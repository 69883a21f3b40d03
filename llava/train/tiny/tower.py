"""Stage 0 of the embedded model: the vision tower learns to say for every patch what lies there.

Between `dense.py` (labels and heads) and `recipe.py`. Every picture is fresh: the step number seeds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import InternVLVisionConfig, InternVLVisionModel

from llava.demo.drawing import draw
from llava.demo.scenes import USUAL, Mix, Split, make_scene
from llava.log import get_logger
from llava.model.builder import load_model
from llava.processing.image_rules import IMAGENET_MEAN, IMAGENET_STD, ImageRules
from llava.processing.pixels import ImageProcessor
from llava.train.tiny.dense import DenseHeads, dense_accuracy, dense_loss, patch_labels
from llava.train.tiny.loop import Loop, LoopConfig, make_optimizers

_logger = get_logger(__name__)

RULES = ImageRules(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD, aspect="pad")
PATCH_SIZE = 8
GRID = RULES.size // PATCH_SIZE

TOWER_MIX = Mix(number=0.6, icon=0.6)
"""Numbers and icons are harder than shapes, so the tower sees more of them."""

_FIRST_SEED = 50_000_000
"""The tower has training scenes of its own."""


def tower_config() -> InternVLVisionConfig:
    """Return InternViT's architecture at tiny size."""
    return InternVLVisionConfig(
        hidden_size=160,
        num_hidden_layers=6,
        num_attention_heads=5,
        intermediate_size=640,
        attention_bias=False,
        use_qk_norm=True,
        norm_type="rms_norm",
        layer_norm_eps=1e-6,
        layer_scale_init_value=1.0,
        use_mean_pooling=True,
        image_size=[RULES.size, RULES.size],
        patch_size=[PATCH_SIZE, PATCH_SIZE],
        attn_implementation="sdpa",
    )


def patch_features(tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return float[B, N, C]: the last layer's patch tokens, without the class token."""
    return tower(pixel_values).last_hidden_state[:, 1:]


@dataclass
class DenseBatch:
    """pixel_values: float[B, 3, S, S]; labels: int64[B, N, heads]."""

    pixel_values: torch.Tensor
    labels: torch.Tensor


def dense_batch(seeds: Sequence[int], split: Split, mix: Mix = USUAL) -> DenseBatch:
    """Draw scenes and label their patches."""
    scenes = [make_scene(seed, split, mix) for seed in seeds]
    drawings = [draw(scene) for scene in scenes]
    labels = [
        patch_labels(scene, drawing, grid=GRID, patch_size=PATCH_SIZE)
        for scene, drawing in zip(scenes, drawings, strict=True)
    ]
    pixel_values = ImageProcessor(RULES)([drawing.image for drawing in drawings])
    return DenseBatch(pixel_values, torch.from_numpy(np.stack(labels)))


class TowerStage(nn.Module):
    """Stage 0: the vision tower under its dense heads. The module is the model and the task of the loop."""

    def __init__(self, *, batch_size: int) -> None:
        super().__init__()
        self.tower = InternVLVisionModel(tower_config())
        self.heads = DenseHeads(tower_config().hidden_size)
        self.batch_size = batch_size

    def batches(self, step: int) -> list[DenseBatch]:
        """Return one batch of fresh scenes."""
        first = _FIRST_SEED + step * self.batch_size
        return [dense_batch(range(first, first + self.batch_size), "train", TOWER_MIX)]

    def num_targets(self, batch: DenseBatch) -> int:
        """Weigh batches by pictures."""
        return len(batch.labels)

    def loss(self, batch: DenseBatch) -> torch.Tensor:
        """Return the dense loss summed over pictures."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.heads(patch_features(self.tower, batch.pixel_values))
        logits = {name: values.float() for name, values in logits.items()}
        return dense_loss(logits, batch.labels) * len(batch.labels)

    @torch.no_grad()
    def measure(self, step: int) -> None:
        """Log each head's accuracy on held-out scenes."""
        batch = dense_batch(range(300), "held-out", TOWER_MIX)
        accuracy = dense_accuracy(self.heads(patch_features(self.tower, batch.pixel_values)), batch.labels)
        _logger.info("step=%d held-out %s", step, " ".join(f"{k}={v:.3f}" for k, v in accuracy.items()))


def begin_from(tower: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's tower; layers that it lacks stay as they are, with small steps at first."""
    prefix = "model.vision_tower."
    weights = load_model(checkpoint).model.state_dict()
    own = {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
    missing, unexpected = tower.load_state_dict(own, strict=False)
    new = [name for name, _ in tower.named_parameters() if name in missing]
    assert own, checkpoint
    assert not unexpected, unexpected
    assert all(".layer." in name for name in new), new
    for name, parameter in tower.named_parameters():
        if name in new and "lambda_" in name:
            nn.init.constant_(parameter, 0.1)


def train_tower(
    folder: Path, *, num_steps: int, batch_size: int = 64, begin: Path | None = None
) -> TowerStage:
    """Run stage 0, or load its result."""
    torch.manual_seed(0)
    stage = TowerStage(batch_size=batch_size)
    if begin is not None:
        begin_from(stage.tower, begin)
    optimizers = make_optimizers([(list(stage.named_parameters()), 3e-3)])
    config = LoopConfig(num_steps=num_steps, warmup_steps=40, checkpoint_every_s=90)
    Loop(stage, optimizers, stage, config, folder / "tower", on_checkpoint=stage.measure).train()
    return stage
