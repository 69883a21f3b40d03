"""The probe asks what was trained, of models with adapters and of mixed dtypes, and leaves no trace."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.data.collator import collate_packed
from llava.data.records import Record
from llava.data.samples import SampleEncoder
from llava.demo import embedded_model_path, example_images
from llava.engine.torch_engine import TorchEngine
from llava.model.builder import LoadedModel, load_model
from llava.model.packed_attention import use_packed_attention
from llava.train.config import OptimizerOptions, StageOptions
from llava.train.probe import MAX_NEW_TOKENS, probe, trained_records
from llava.train.stages import parameter_groups
from llava.train.trainee import Trainee
from tests.train.runs import options, ready, training_model

NUMBER = str(next(path for path in example_images() if path.stem == "number"))
QUESTION = "What number is written in the picture?"


def record(question: str, answer: str, image: str | None = NUMBER, name: str = "1") -> Record:
    first = f"<image>\n{question}" if image else question
    turns = ({"from": "human", "value": first}, {"from": "gpt", "value": answer})
    return Record(name, turns, (image,) if image else (), "scenes", f"x.jsonl line {name}")


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    return load_model(embedded_model_path())


def test_the_answer_is_the_one_a_chat_would_get(embedded: LoadedModel) -> None:
    answer = TorchEngine(embedded).ask(QUESTION, [NUMBER])
    records = [record(QUESTION, answer), record(QUESTION, "no number", name="2")]
    right, wrong = probe(embedded, records, 2, max_length=512)
    assert (right.got, right.expected, right.is_equal) == (answer, answer, True)
    assert (wrong.got, wrong.expected, wrong.is_equal) == (answer, "no number", False)
    assert (right.question, right.source, right.where) == (QUESTION, "scenes", "x.jsonl line 1")


def test_only_the_first_answer_of_a_conversation_is_asked_for(embedded: LoadedModel) -> None:
    first = record(QUESTION, "1")
    turns = (*first.turns, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."})
    long = Record("a", turns, first.images, "scenes", "here")
    asked, alone = probe(embedded, [long, first], 2, max_length=512)
    assert (asked.question, asked.expected, asked.got) == (alone.question, alone.expected, alone.got)


def test_pictures_are_shown_small(embedded: LoadedModel, tmp_path: Path) -> None:
    Image.new("RGBA", (900, 300), "red").save(tmp_path / "wide.png")
    (answer,) = probe(embedded, [record(QUESTION, "7", str(tmp_path / "wide.png"))], 1, max_length=512)
    (thumbnail,) = answer.thumbnails
    head, _, data = thumbnail.partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 53)


def test_a_question_without_a_picture_and_no_question_at_all(embedded: LoadedModel) -> None:
    (answer,) = probe(embedded, [record("Hello!", "Hi.", image=None)], 3, max_length=512)
    assert answer.thumbnails == ()
    assert probe(embedded, [], 3, max_length=512) == []


def test_samples_that_cannot_be_used_make_room_for_the_next(
    embedded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    bad = record(QUESTION, "7", "/nowhere/x.png", name="gone")
    answers = probe(
        embedded, [bad, record(QUESTION, "7", name="2"), record(QUESTION, "7")], 1, max_length=512
    )
    assert [answer.id for answer in answers] == ["2"]
    assert "/nowhere/x.png" in caplog.text


def overfit(trainee: Trainee, stage: StageOptions, sample: Record, *, steps: int, lr: float) -> None:
    encoder = SampleEncoder(
        trainee.tokenizer,
        trainee.template,
        trainee.image_processor,
        trainee.num_image_tokens,
        max_length=512,
    )
    batch = collate_packed([encoder.example(0, sample)], num_image_tokens=trainee.num_image_tokens)
    wrapped = training_model(trainee)
    wrapped.train()
    optimizer = torch.optim.AdamW(parameter_groups(wrapped, OptimizerOptions(lr=lr), stage))
    for _ in range(steps):
        (wrapped(batch).total / batch.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_adapters_learnt_by_heart_is_answered(dtype: torch.dtype) -> None:
    stage = StageOptions(name="lora", lora_r=8, lora_alpha=32)
    torch.manual_seed(0)  # peft draws the adapters' first weights
    trainee = ready(options(), stage, dtype=dtype)
    use_packed_attention(trainee.model.model.language_model)
    sample = record("What is it?", "A blue horse on the roof.")
    (before,) = probe(trainee, [sample], 1, max_length=512, compute_dtype=dtype)
    overfit(trainee, stage, sample, steps=40, lr=1e-2)
    (after,) = probe(trainee, [sample], 1, max_length=512, compute_dtype=dtype)
    assert not before.is_equal
    assert after.got == "A blue horse on the roof."


def test_the_model_is_left_as_it_was() -> None:
    stage = StageOptions(name="lora", lora_r=4, lora_dropout=0.5)
    trainee = ready(options(), stage)
    trainee.model.train()
    trainee.model.model.vision_tower.eval()
    modes = [module.training for module in trainee.model.modules()]
    weights = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    state = torch.random.get_rng_state()
    once, again = (probe(trainee, [record("What?", "That.")], 1, max_length=512) for _ in range(2))
    assert once == again  # no dropout
    assert [module.training for module in trainee.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in trainee.model.state_dict().items())
    assert len(once[0].got) < 20 * MAX_NEW_TOKENS


def test_training_goes_on_after_a_probe_as_if_there_had_been_none() -> None:
    stage = StageOptions(name="finetune")
    sample = record("What is it?", "A blue horse.")
    results = []
    for is_probed in (False, True):
        trainee = ready(options(), stage)
        overfit(trainee, stage, sample, steps=2, lr=1e-3)
        if is_probed:
            probe(trainee, [sample], 1, max_length=512)
        overfit(trainee, stage, sample, steps=2, lr=1e-3)
        results.append(trainee.model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@dataclass
class FakePlan:
    """Steps of two slots with two samples each, the second slot of odd steps empty."""

    num_steps: int

    def step(self, step: int) -> list[list[int]]:
        return [[4 * step, 4 * step + 1], [] if step % 2 else [4 * step + 2, 4 * step + 3]]


def test_probed_samples_are_spread_over_what_is_trained_and_each_comes_once() -> None:
    class Everything:
        def __getitem__(self, index: int) -> Record:
            return record("?", "!", name=str(index))

    def names(num_steps: int, n: int) -> list[int]:
        return [int(one.id) for one in trained_records(FakePlan(num_steps), Everything(), n)]

    assert names(9, 3) == [0, 12, 24, 2, 26]
    assert names(1, 3) == [0, 2]
    assert names(0, 3) == []
