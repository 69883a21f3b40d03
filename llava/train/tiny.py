"""The recipe of the embedded model, InternVL-Chat-Tiny: from nothing to a checkpoint on one CPU.

    python -m llava.train.tiny --out runs/tiny

Stage 0 teaches the vision tower what each patch shows (`dense.py`); stage 1 trains projector, language model
and tower on questions and answers about generated pictures. Every picture is fresh: the step number seeds it.
A run that was stopped goes on from its last checkpoint when started again with the same folder;
`tiny_export.py` makes the result a checkpoint that `llava.load` takes.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import InternVLVisionConfig, InternVLVisionModel, LlamaConfig, LlamaForCausalLM

from llava import log
from llava.constants import IGNORE_INDEX
from llava.demo.drawing import draw
from llava.demo.questions import QA, QUESTION_KINDS, ask, vary, without_picture
from llava.demo.scenes import Scene, Split, make_scene
from llava.processing.image_rules import IMAGENET_MEAN, IMAGENET_STD, ImageRules
from llava.processing.pixels import ImageProcessor
from llava.processing.supervision import Supervised, supervise
from llava.processing.tokenizer import load_tokenizer
from llava.train.dense import DenseHeads, dense_accuracy, dense_loss, patch_labels
from llava.train.loop import Loop, LoopConfig, make_optimizers
from llava.train.packing import Packed, additive, pack
from llava.train.tiny_tokenizer import CONTEXT_LENGTH, TEMPLATE, train_tokenizer

_logger = log.get_logger("llava.train.tiny")  # also where this module is `__main__`

RULES = ImageRules(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD, aspect="pad")
PATCH_SIZE = 8
GRID = RULES.size // PATCH_SIZE

DENSE_WEIGHT = 0.1
"""Of the tower's dense loss (ten heads) against the text loss per token in stage 1."""

_STAGE_SEEDS = {"tower": 0, "chat": 10_000_000}
"""Each stage draws its own training scenes."""


def tower_config() -> InternVLVisionConfig:
    """Return InternViT's architecture at tiny size."""
    return InternVLVisionConfig(
        hidden_size=160,
        num_hidden_layers=5,
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


def dense_batch(seeds: Sequence[int], split: Split) -> DenseBatch:
    """Draw scenes and label their patches."""
    scenes = [make_scene(seed, split) for seed in seeds]
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
        first = _STAGE_SEEDS["tower"] + step * self.batch_size
        return [dense_batch(range(first, first + self.batch_size), "train")]

    def num_targets(self, batch: DenseBatch) -> int:
        """Weigh batches by pictures."""
        return len(batch.labels)

    def loss(self, batch: DenseBatch) -> torch.Tensor:
        """Return the dense loss summed over pictures."""
        logits = self.heads(patch_features(self.tower, batch.pixel_values))
        return dense_loss(logits, batch.labels) * len(batch.labels)

    @torch.no_grad()
    def measure(self, step: int) -> None:
        """Log each head's accuracy on held-out scenes."""
        batch = dense_batch(range(200), "held-out")
        accuracy = dense_accuracy(self.heads(patch_features(self.tower, batch.pixel_values)), batch.labels)
        _logger.info("step=%d held-out %s", step, " ".join(f"{k}={v:.3f}" for k, v in accuracy.items()))


def train_tower(folder: Path, *, num_steps: int, batch_size: int = 32) -> TowerStage:
    """Run stage 0, or load its result."""
    torch.manual_seed(0)
    stage = TowerStage(batch_size=batch_size)
    optimizers = make_optimizers([(list(stage.named_parameters()), 4e-3)])
    config = LoopConfig(num_steps=num_steps, warmup_steps=40, checkpoint_every_s=90)
    Loop(stage, optimizers, stage, config, folder / "tower", on_checkpoint=stage.measure).train()
    return stage


_WEIGHTS = {
    "color": 1.2,
    "shape": 0.8,
    "count_all": 0.7,
    "count_shape": 2.2,
    "count_color": 0.7,
    "position": 4.0,
    "presence": 1.5,
    "what_at": 2.0,
    "number": 2.5,
    "icon": 0.7,
    "describe": 1.3,
    "what_is_this": 0.5,
    "absent": 0.4,
    "small_talk": 0.15,
}
"""How often each kind of question is asked in training: what is hard to learn, more."""


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


@dataclass
class ChatBatch:
    """Pictures with their patch labels and packed conversations; `kinds` has the kind of each."""

    dense: DenseBatch
    packed: Packed
    kinds: list[list[str]]


class ChatStage(nn.Module):
    """Stage 1: tower, projector and language model on conversations; the tower keeps its dense labels too."""

    def __init__(self, tower_stage: TowerStage, folder: Path, *, batch_size: int, num_questions: int) -> None:
        super().__init__()
        self.tower, self.heads = tower_stage.tower, tower_stage.heads
        language = language_config()
        first = nn.Linear(tower_config().hidden_size, language.hidden_size)
        # The tower has no final norm: its features are large (RMS about 8), the embeddings should not be.
        nn.init.normal_(first.weight, std=0.01)
        self.projector = nn.Sequential(
            first, nn.GELU(), nn.Linear(language.hidden_size, language.hidden_size)
        )
        self.language_model = LlamaForCausalLM(language)
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.batch_size, self.num_questions = batch_size, num_questions
        self._encoded: dict[tuple[str, ...], Supervised] = {}

    def batches(self, step: int) -> list[ChatBatch]:
        """Return one batch of fresh scenes with questions."""
        first = _STAGE_SEEDS["chat"] + step * self.batch_size
        return [self.chat_batch(range(first, first + self.batch_size), "train")]

    def num_targets(self, batch: ChatBatch) -> int:
        """Weigh batches by trained tokens."""
        return int((batch.packed.labels != IGNORE_INDEX).sum())

    def chat_batch(self, seeds: Sequence[int], split: Split) -> ChatBatch:
        """Draw scenes and pack questions about them; held-out batches ask one question of every kind."""
        kinds, samples = [], []
        for seed in seeds:
            scene, rng = make_scene(seed, split), random.Random(f"questions {split} {seed}")
            asked = (
                conversations(scene, rng, self.num_questions)
                if split == "train"
                else [[qa] for kind in QUESTION_KINDS if (qa := ask(scene, kind, rng))]
            )
            kinds.append([turns[-1].kind for turns in asked])
            samples.append([self._encode(turns, has_image=True) for turns in asked])
            if split == "train" and rng.random() < 0.2:
                samples[-1].append(self._encode([without_picture(scene, rng)], has_image=False))
        return ChatBatch(dense_batch(seeds, split), pack(samples, num_image_tokens=GRID * GRID), kinds)

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
        logits, targets, features = self.logits(batch)
        text_loss = F.cross_entropy(logits, targets, reduction="sum")
        dense = dense_loss(self.heads(features), batch.dense.labels)
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
    questions: list[QA] = []
    while len(questions) < num_questions:
        qa = ask(scene, rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0], rng)
        if qa is not None:
            questions.append(qa._replace(question=vary(qa.question, rng)))
    result = []
    while questions:
        num_turns = rng.choices((1, 2, 3), weights=(0.85, 0.1, 0.05))[0]
        result.append(questions[:num_turns])
        questions = questions[num_turns:]
    return result


def train_chat(
    folder: Path, tower_stage: TowerStage, *, num_steps: int, batch_size: int, num_questions: int
) -> ChatStage:
    """Run stage 1, or load its result."""
    torch.manual_seed(1)
    stage = ChatStage(tower_stage, folder, batch_size=batch_size, num_questions=num_questions)
    is_tower = ("tower.", "heads.")
    named = list(stage.named_parameters())
    optimizers = make_optimizers(
        [
            ([pair for pair in named if not pair[0].startswith(is_tower)], 4e-3),
            ([pair for pair in named if pair[0].startswith(is_tower)], 1.5e-3),
        ]
    )
    config = LoopConfig(num_steps=num_steps, warmup_steps=60, checkpoint_every_s=200)
    Loop(stage, optimizers, stage, config, folder / "chat", on_checkpoint=stage.measure).train()
    return stage


def main() -> None:
    """Train the embedded model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tower-steps", type=int, default=1900)
    parser.add_argument("--chat-steps", type=int, default=2200)
    parser.add_argument("--chat-batch", type=int, default=8, help="pictures per step")
    parser.add_argument("--questions", type=int, default=14, help="questions per picture")
    args = parser.parse_args()
    log.configure(verbose=True)
    torch.set_num_threads(args.threads)
    if not (args.out / "tokenizer" / "tokenizer.model").exists():
        train_tokenizer(args.out / "tokenizer")
    tower_stage = train_tower(args.out, num_steps=args.tower_steps)
    train_chat(
        args.out,
        tower_stage,
        num_steps=args.chat_steps,
        batch_size=args.chat_batch,
        num_questions=args.questions,
    )


if __name__ == "__main__":
    main()
