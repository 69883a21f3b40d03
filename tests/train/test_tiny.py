"""The embedded model's recipe from end to end, with a handful of steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import llava
from llava.constants import IGNORE_INDEX
from llava.demo.drawing import draw
from llava.demo.scenes import make_scene
from llava.engine.engine import ChatEngine
from llava.processing.tokenizer import load_tokenizer
from llava.train.tiny import ChatStage, TowerStage, train_chat, train_tower
from llava.train.tiny_export import export
from llava.train.tiny_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ChatStage]]:
    folder = tmp_path_factory.mktemp("run")
    train_tokenizer(folder / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TowerStage, "measure", _measure_nothing)
        patch.setattr(ChatStage, "measure", _measure_nothing)
        stage = train_tower(folder, num_steps=2, batch_size=2)
        yield folder, train_chat(folder, stage, num_steps=2, batch_size=2, num_questions=4).eval()


def _measure_nothing(stage: object, step: int) -> None:
    del stage, step


@pytest.fixture(scope="module")
def engine(run: tuple[Path, ChatStage]) -> ChatEngine:
    export(run[0], run[0] / "model")
    return llava.load(run[0] / "model", device="cpu")


def test_the_tokenizer_is_of_llamas_kind(run: tuple[Path, ChatStage]) -> None:
    tokenizer = load_tokenizer(run[0] / "tokenizer")
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (1024, 1, 2)
    text = "Grüße, 你好 42"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


@torch.no_grad()
def test_the_exported_model_computes_what_training_computed(
    run: tuple[Path, ChatStage], engine: ChatEngine
) -> None:
    stage = run[1]
    batch = stage.chat_batch([5], "held-out")
    trained, targets, _ = stage.logits(batch)
    ids = batch.packed.input_ids[0]
    segments = batch.packed.segments[0]
    done = 0
    for index in range(len(batch.kinds[0])):
        chosen = (segments == index + 1) | (segments == 0)
        alone, labels = ids[chosen], batch.packed.labels[0][chosen]
        logits = engine.model(input_ids=alone[None], pixel_values=batch.dense.pixel_values).logits[0, :-1]
        is_trained = labels[1:] != IGNORE_INDEX
        expected = trained[done : done + int(is_trained.sum())]
        torch.testing.assert_close(logits[is_trained], expected, atol=5e-3, rtol=5e-3)
        done += int(is_trained.sum())
    assert done == len(targets)


def test_the_exported_model_answers(engine: ChatEngine) -> None:
    image = draw(make_scene(0, "train")).image
    assert isinstance(engine.ask("What is this?", images=[image], max_new_tokens=4), str)


def test_scenes_of_the_chat_stage_are_not_held_out() -> None:
    held_out = {make_scene(seed, "held-out").annotation for seed in range(100)}
    trained = {make_scene(10_000_000 + seed, "train").annotation for seed in range(2000)}
    assert not held_out & trained
