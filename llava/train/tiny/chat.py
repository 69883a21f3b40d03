"""The embedded model's two chat stages on the small loop of `loop.py`: many questions per picture, packed.

Stage "align" trains a fresh projector alone, stage "finetune" projector, language model and tower; the tower
keeps its dense labels in the second. Every picture is fresh: the step number seeds it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.demo.questions import QA, QUESTION_KINDS, ask, without_picture
from llava.demo.scenes import USUAL, Scene, Split, make_scene
from llava.log import get_logger
from llava.model.builder import load_model
from llava.processing.supervision import Supervised, supervise
from llava.processing.tokenizer import load_tokenizer
from llava.train.tiny.data import CHAT_MIX, questions_about
from llava.train.tiny.dense import dense_loss
from llava.train.tiny.loop import Loop, LoopConfig, make_optimizers
from llava.train.tiny.packing import Packed, additive, pack
from llava.train.tiny.tokenizer import CONTEXT_LENGTH, TEMPLATE
from llava.train.tiny.tower import GRID, DenseBatch, TowerStage, dense_batch, patch_features, tower_config

_logger = get_logger(__name__)

Stage = Literal["align", "finetune"]

DENSE_WEIGHT = 0.1
"""Of the tower's dense loss (eleven heads) against the text loss per token, where the tower learns."""

_FIRST_SEED = {"align": 90_000_000, "finetune": 100_000_000}
"""Each stage draws its own training scenes."""


def language_config() -> LlamaConfig:
    """Return Llama's architecture at tiny size."""
    return LlamaConfig(
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT_LENGTH,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


def make_projector() -> nn.Sequential:
    """Return a fresh `mlp2x_gelu` projector."""
    width = language_config().hidden_size
    first = nn.Linear(tower_config().hidden_size, width)
    # The tower has no final norm: its features are large (RMS about 8), the embeddings should not be.
    nn.init.normal_(first.weight, std=0.01)
    return nn.Sequential(first, nn.GELU(), nn.Linear(width, width))


@dataclass
class ChatBatch:
    """Pictures with their patch labels and packed conversations; `kinds` has the kind of each."""

    dense: DenseBatch
    packed: Packed
    kinds: list[list[str]]


class ChatStage(nn.Module):
    """Tower, projector and language model on conversations; the module is the model and the loop's task."""

    def __init__(
        self, tower_stage: TowerStage, folder: Path, stage: Stage, *, batch_size: int, num_questions: int
    ) -> None:
        super().__init__()
        self.tower, self.heads = tower_stage.tower, tower_stage.heads
        self.projector = make_projector()
        self.language_model = LlamaForCausalLM(language_config())
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.stage, self.batch_size, self.num_questions = stage, batch_size, num_questions
        if stage == "align":
            for part in (self.tower, self.heads, self.language_model):
                part.requires_grad_(False)
        self._encoded: dict[tuple[str, ...], Supervised] = {}

    def batches(self, step: int) -> list[ChatBatch]:
        """Return one batch of fresh scenes with questions."""
        first = _FIRST_SEED[self.stage] + step * self.batch_size
        return [self.chat_batch(range(first, first + self.batch_size), "train")]

    def num_targets(self, batch: ChatBatch) -> int:
        """Weigh batches by trained tokens."""
        return int((batch.packed.labels != IGNORE_INDEX).sum())

    def chat_batch(self, seeds: Sequence[int], split: Split) -> ChatBatch:
        """Draw scenes and pack questions about them; held-out batches ask one question of every kind."""
        kinds, samples = [], []
        mix = CHAT_MIX if split == "train" else USUAL
        for seed in seeds:
            scene, rng = make_scene(seed, split, mix), random.Random(f"questions {split} {seed}")
            asked = (
                conversations(scene, rng, self.num_questions)
                if split == "train"
                else [[qa] for kind in QUESTION_KINDS if (qa := ask(scene, kind, rng))]
            )
            kinds.append([turns[-1].kind for turns in asked])
            samples.append([self._encode(turns, has_image=True) for turns in asked])
            if split == "train" and rng.random() < 0.2:
                samples[-1].append(self._encode([without_picture(scene, rng)], has_image=False))
        return ChatBatch(dense_batch(seeds, split, mix), pack(samples, num_image_tokens=GRID * GRID), kinds)

    def _encode(self, turns: Sequence[QA], *, has_image: bool) -> Supervised:
        key = (str(has_image), *(text for turn in turns for text in (turn.question, turn.answer)))
        if key not in self._encoded:
            values = [text for turn in turns for text in (turn.question, turn.answer)]
            values[0] = f"<image>\n{values[0]}" if has_image else values[0]
            records = [
                {"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)
            ]
            self._encoded[key] = supervise(
                records, self.tokenizer, TEMPLATE, has_image=has_image, model_max_length=CONTEXT_LENGTH
            )
        return self._encoded[key]

    def logits(self, batch: ChatBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits float[T, V] and targets int64[T] of trained positions; features float[B, N, C]."""
        packed = batch.packed
        features = patch_features(self.tower, batch.dense.pixel_values)  # [B, N, C]
        embeds = self.language_model.get_input_embeddings()(packed.input_ids.clamp(min=0))  # [B, L, C]
        span = packed.image_slice
        embeds = torch.cat([embeds[:, : span.start], self.projector(features), embeds[:, span.stop :]], dim=1)
        hidden = self.language_model.model(
            inputs_embeds=embeds,
            attention_mask=additive(packed.attends, embeds.dtype),
            position_ids=packed.position_ids,
            use_cache=False,
        ).last_hidden_state
        targets = packed.labels[:, 1:]
        is_trained = targets != IGNORE_INDEX
        return self.language_model.lm_head(hidden[:, :-1][is_trained]), targets[is_trained], features

    def loss(self, batch: ChatBatch) -> torch.Tensor:
        """Return the loss summed over trained tokens, plus the tower's dense loss at a fixed weight."""
        with torch.autocast("cpu", torch.bfloat16):
            logits, targets, features = self.logits(batch)
            dense_logits = self.heads(features)
        text_loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        if self.stage == "align":
            return text_loss
        dense_logits = {name: values.float() for name, values in dense_logits.items()}
        dense = dense_loss(dense_logits, batch.dense.labels)
        return text_loss + DENSE_WEIGHT * dense * len(targets)

    @torch.no_grad()
    def measure(self, step: int) -> None:
        """Log the share of held-out answers whose every token is the most likely one."""
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        text_loss, num_tokens = 0.0, 0
        for first in range(0, 96, 16):
            batch = self.chat_batch(range(first, first + 16), "held-out")
            logits, targets, _ = self.logits(batch)
            text_loss += float(F.cross_entropy(logits, targets, reduction="sum"))
            num_tokens += len(targets)
            is_wrong = torch.zeros_like(batch.packed.segments)
            is_trained = batch.packed.labels[:, 1:] != IGNORE_INDEX
            is_wrong[:, 1:][is_trained] = (logits.argmax(-1) != targets).long()
            for row, kinds in enumerate(batch.kinds):
                wrong = torch.bincount(batch.packed.segments[row], is_wrong[row], minlength=len(kinds) + 1)
                for index, kind in enumerate(kinds):
                    asked[kind] += 1
                    right[kind] += int(wrong[index + 1] == 0)
        scores = " ".join(f"{kind}={right[kind] / asked[kind]:.3f}" for kind in asked)
        _logger.info("step=%d held-out loss=%.4f %s", step, text_loss / num_tokens, scores)


def conversations(scene: Scene, rng: random.Random, num_questions: int) -> list[list[QA]]:
    """Return conversations with `num_questions` questions in all: most with one, some with two or three."""
    questions = questions_about(scene, rng, num_questions)
    result = []
    while questions:
        num_turns = rng.choices((1, 2, 3), weights=(0.85, 0.1, 0.05))[0]
        result.append(questions[:num_turns])
        questions = questions[num_turns:]
    return result


def begin_language(model: LlamaForCausalLM, checkpoint: Path) -> None:
    """Load a checkpoint's language model."""
    weights = load_model(checkpoint).model.state_dict()
    names = {"model.language_model.": "model.", "lm_head.": "lm_head."}
    own = {
        new + key.removeprefix(old): value.float()
        for key, value in weights.items()
        for old, new in names.items()
        if key.startswith(old)
    }
    model.load_state_dict(own)


def train_chat(
    folder: Path, stage: ChatStage, *, num_steps: int, lr: float, tower_lr: float, warmup_steps: int = 40
) -> ChatStage:
    """Run the stage's loop in `folder`, or load its result."""
    is_tower = ("tower.", "heads.")
    named = list(stage.named_parameters())
    groups = [([pair for pair in named if not pair[0].startswith(is_tower)], lr)]
    if stage.stage == "finetune":
        groups.append(([pair for pair in named if pair[0].startswith(is_tower)], tower_lr))
    config = LoopConfig(num_steps=num_steps, warmup_steps=warmup_steps, checkpoint_every_s=200)
    Loop(stage, make_optimizers(groups), stage, config, folder, on_checkpoint=stage.measure).train()
    return stage
