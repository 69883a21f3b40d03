"""Models to train built from the fixtures, and single optimizer steps on them, for the trainer's tests."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Batch
from llava.model.builder import LoadedModel
from llava.train.building import build
from llava.train.config import ModelOptions, OptimizerOptions, StageOptions
from llava.train.forward import TrainingModel
from llava.train.stages import apply_stage, parameter_groups
from llava.train.trainee import Trainee

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKPOINTS = FIXTURES / "checkpoints"
RUNS = FIXTURES / "training"
VICUNA = CHECKPOINTS / "vicuna-f-base"
CLIP_TOWER = CHECKPOINTS / "towers" / "clip-tiny-56px"
INTERNVIT_TOWER = CHECKPOINTS / "towers" / "InternViT-6B-tiny-56px"
SELECT_LAYER = {CLIP_TOWER: -2, INTERNVIT_TOWER: -4}


@functools.cache
def base_of_runs() -> Path:
    """Return the base of the recorded runs: vicuna-f-base with the other tokenizer laid over it."""
    folder = Path(tempfile.mkdtemp()) / "vicuna-f-base with tokenizer-mt"
    shutil.copytree(VICUNA, folder)
    shutil.copytree(RUNS / "tokenizer-mt", folder, dirs_exist_ok=True)
    return folder


def biased_base(folder: Path) -> Path:
    """Write a Qwen2 language model of two layers, whose q, k and v have biases, with Vicuna's tokenizer."""
    target = folder / "qwen"
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(target)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(VICUNA / name, target / name)
    return target


def options(tower: Path = CLIP_TOWER, **changes: Any) -> ModelOptions:
    """Return options for a fresh projector between vicuna-f-base and a tower."""
    fields: dict[str, Any] = {
        "path": str(VICUNA),
        "vision_tower": str(tower),
        "select_layer": SELECT_LAYER[tower],
        "projector_type": "mlp2x_gelu",
    }
    return ModelOptions(**fields | changes)


def built(
    model: ModelOptions, stage: StageOptions, *, dtype: torch.dtype = torch.float32, seed: int = 7
) -> Trainee:
    """Build on the CPU, pictures padded; nothing is frozen yet."""
    return build(model, stage, aspect="pad", max_length=512, device="cpu", compute_dtype=dtype, seed=seed)


def ready(
    model: ModelOptions, stage: StageOptions, *, dtype: torch.dtype = torch.float32, seed: int = 7
) -> Trainee:
    """Build and apply the stage."""
    trainee = built(model, stage, dtype=dtype, seed=seed)
    apply_stage(trainee, stage)
    return trainee


def batch_for(trainee: Trainee, *, seed: int = 0, with_picture: bool = True) -> Batch:
    """Return one packed sample: a picture where there is a tower, and 12 random tokens, 8 of them trained."""
    generator = torch.Generator().manual_seed(seed)
    size = 0 if trainee.rules is None else trainee.rules.size
    num_pictures = int(trainee.has_pictures and with_picture)
    text = torch.randint(3, 900, (12,), generator=generator).tolist()
    ids = [1, *[IMAGE_TOKEN_INDEX] * (trainee.num_image_tokens * num_pictures), *text]
    labels = [IGNORE_INDEX] * (len(ids) - 8) + ids[-8:]
    return Batch(
        input_ids=torch.tensor([ids]),
        labels=torch.tensor([labels]),
        position_ids=torch.arange(len(ids))[None],
        attention_mask=None,
        segments=(len(ids),),
        pixel_values=torch.randn(num_pictures, 3, size, size, generator=generator),
        num_targets=8,
        num_tokens=len(ids),
    )


def take_steps(trainee: Trainee, stage: StageOptions, *, steps: int = 1, lr: float = 1e-2) -> list[float]:
    """Train on one batch; returns the loss before each step."""
    wrapped = training_model(trainee)
    groups = parameter_groups(wrapped, OptimizerOptions(lr=lr, weight_decay=0.1), stage)
    optimizer = torch.optim.AdamW(groups)
    batch = batch_for(trainee)
    losses = []
    for _ in range(steps):
        loss = wrapped(batch).total / batch.num_targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def training_model(trainee: Trainee) -> TrainingModel:
    """Wrap the model as the trainer does."""
    size = None if trainee.rules is None else trainee.rules.size
    return TrainingModel(trainee.model, image_size=size, compute_dtype=trainee.compute_dtype)


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logits(of: Trainee | LoadedModel, *, seed: int = 0) -> torch.Tensor:
    """Return float32[L, V] for a random picture and question, as the model is used for answers."""
    model = of.model.eval()
    generator = torch.Generator().manual_seed(seed)
    assert model.image_processor is not None
    size = model.image_processor.rules.size
    ids = [1, *[IMAGE_TOKEN_INDEX] * of.num_image_tokens, *range(5, 900, 90)]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.randn(1, 3, size, size, generator=generator),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        )
    result: torch.Tensor = out.logits[0].float()
    return result
