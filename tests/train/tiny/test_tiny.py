"""The embedded model's recipe from end to end, with a handful of steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import llava
from llava.constants import IGNORE_INDEX
from llava.demo import embedded_model_path
from llava.demo.drawing import draw
from llava.demo.scenes import make_scene
from llava.engine.torch_engine import TorchEngine
from llava.processing.tokenizer import load_tokenizer
from llava.train.tiny.chat import ChatStage
from llava.train.tiny.export import export, write, write_base
from llava.train.tiny.recipe import align, copy_tokenizer, finetune
from llava.train.tiny.tokenizer import train_tokenizer
from llava.train.tiny.tower import TowerStage, train_tower


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ChatStage]]:
    folder = tmp_path_factory.mktemp("run")
    begin = embedded_model_path()
    copy_tokenizer(begin, folder / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TowerStage, "measure", _measure_nothing)
        patch.setattr(ChatStage, "measure", _measure_nothing)
        tower = train_tower(folder, num_steps=2, batch_size=2, begin=begin)
        aligned = align(folder, tower, begin, num_steps=2, batch_size=2, num_questions=4)
        stage = finetune(folder, aligned, tower, num_steps=2, batch_size=2, num_questions=4)
        # As they are stored, so that results can be compared closely.
        stored = {name: value.to(torch.float16).float() for name, value in stage.state_dict().items()}
        stage.load_state_dict(stored)
        yield folder, stage.eval()


def _measure_nothing(stage: object, step: int) -> None:
    del stage, step


@pytest.fixture(scope="module")
def engine(run: tuple[Path, ChatStage]) -> TorchEngine:
    write(run[1].state_dict(), run[0] / "tokenizer", run[0] / "model", {"program": "a test"})
    return llava.load(run[0] / "model", device="cpu")


def test_the_tokenizer_is_of_llamas_kind(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (1024, 1, 2)
    text = "Grüße, 你好 42"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


@torch.no_grad()
def test_the_exported_model_computes_what_training_computed(
    run: tuple[Path, ChatStage], engine: TorchEngine
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
        torch.testing.assert_close(logits[is_trained], expected, atol=1e-3, rtol=1e-3)
        done += int(is_trained.sum())
    assert done == len(targets)


def test_the_exported_model_answers(engine: TorchEngine) -> None:
    image = draw(make_scene(0, "train")).image
    assert isinstance(engine.ask("What is this?", images=[image], max_new_tokens=4), str)


def test_the_base_has_what_was_pretrained_and_a_fresh_projector(run: tuple[Path, ChatStage]) -> None:
    write_base(run[0], run[0] / "base")
    base, trained = llava.load(run[0] / "base", device="cpu").model.state_dict(), run[1].state_dict()
    for ours, theirs in (
        ("tower.embeddings.cls_token", "model.vision_tower.embeddings.cls_token"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ):
        torch.testing.assert_close(base[theirs], trained[ours], atol=1e-3, rtol=1e-3)
    distance = base["model.multi_modal_projector.0.weight"] - trained["projector.0.weight"]
    assert distance.abs().mean() > 1e-3


def test_what_is_shipped_is_what_was_trained(engine: TorchEngine, run: tuple[Path, ChatStage]) -> None:
    export(run[0] / "model", run[0] / "shipped")
    shipped = llava.load(run[0] / "shipped", device="cpu").model.state_dict()
    for name, value in engine.model.state_dict().items():
        assert torch.equal(value, shipped[name]), name


def test_scenes_of_the_chat_stage_are_not_held_out() -> None:
    held_out = {make_scene(seed, "held-out").annotation for seed in range(100)}
    trained = {make_scene(100_000_000 + seed, "train").annotation for seed in range(2000)}
    assert not held_out & trained
