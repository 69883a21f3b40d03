"""Outside harnesses on this package: lmms-eval itself where it is installed, and the calls that they make.

The calls are written from what lmms-eval 0.7.3 (model class `llava`) and VLMEvalKit (model class `LLaVA`) do
with `load_pretrained_model`, `process_images`, `tokenizer_image_token`, `conv_templates` and `generate`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import llava
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.demo import embedded_model_path
from llava.engine.request import Request, SamplingParams
from llava.errors import UsageError
from llava.eval.heldout import Question, held_out_questions
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model

MODEL = str(embedded_model_path())
MAX_NEW_TOKENS = 16


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return held_out_questions(1)[:8]


@pytest.fixture(scope="module")
def expected(questions: list[Question]) -> list[str]:
    """What the chat path answers."""
    sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    engine = llava.load(engine="torch")
    try:
        requests = [Request.of_question(own.question, [own.image], sampling) for own in questions]
        return [answer.text for answer in engine.generate(requests)]
    finally:
        engine.close()


@pytest.fixture(scope="module")
def loaded() -> Any:
    """What both harnesses begin with."""
    name = get_model_name_from_path(MODEL)
    return load_pretrained_model(
        MODEL, None, name, device_map="auto", device="cpu", multimodal=True, attn_implementation="sdpa"
    )


def prompt_of(text: str, answer: str | None = None) -> str:
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], text)
    conversation.append_message(conversation.roles[1], None)
    if answer is not None:
        conversation.messages[1][1] = answer
    return str(conversation.get_prompt())


def ids_of(prompt: str, tokenizer: Any) -> torch.Tensor:
    ids: torch.Tensor = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    return ids


def ask_as_lmms_eval(
    loaded: Any, texts: Sequence[str], pictures: Sequence[Image.Image], **more: Any
) -> list[str]:
    """Answer a batch: ids padded with the pad token, a mask of what differs from it, float16 pictures."""
    tokenizer, model, processor, _ = loaded
    model.eval()
    model.tie_weights()
    pixels = process_images(list(pictures), processor, model.config) if pictures else None
    if pixels is not None:
        assert isinstance(pixels, torch.Tensor)
        pixels = pixels.to(dtype=torch.float16)
    mark = f"{DEFAULT_IMAGE_TOKEN}\n" if pictures else ""
    rows = [ids_of(prompt_of(mark + text), tokenizer) for text in texts]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if tokenizer.padding_side == "left":
        rows = [row.flip(0) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    if tokenizer.padding_side == "left":
        ids = ids.flip(1)
    output = model.generate(
        ids,
        attention_mask=ids.ne(pad),
        pad_token_id=pad,
        images=pixels,
        image_sizes=[picture.size for picture in pictures],
        do_sample=False,
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=MAX_NEW_TOKENS,
        use_cache=True,
        **more,
    )
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_calls_of_lmms_eval_give_the_answers_of_the_chat_path(
    loaded: Any, questions: list[Question], expected: list[str], batch_size: int
) -> None:
    answers: list[str] = []
    for begin in range(0, len(questions), batch_size):
        own = questions[begin : begin + batch_size]
        answers += ask_as_lmms_eval(loaded, [item.question for item in own], [item.image for item in own])
    assert answers == expected


def test_the_calls_of_lmms_eval_without_a_picture_answer_too(loaded: Any) -> None:
    assert len(ask_as_lmms_eval(loaded, ["What is it?"], [])) == 1


def test_later_classes_of_lmms_eval_name_modalities(
    loaded: Any, questions: list[Question], expected: list[str]
) -> None:
    own = questions[0]
    assert ask_as_lmms_eval(loaded, [own.question], [own.image], modalities=["image"]) == expected[:1]
    with pytest.raises(UsageError, match="video"):
        ask_as_lmms_eval(loaded, [own.question], [own.image], modalities=["video"])


def test_a_likelihood_as_lmms_eval_computes_it_prefers_the_models_own_answer(
    loaded: Any, questions: list[Question], expected: list[str]
) -> None:
    tokenizer, model, processor, _ = loaded
    own = questions[0]
    pixels = process_images([own.image], processor, model.config)
    losses, greedy = [], []
    for answer in (expected[0], "Nobody knows that."):
        text = f"{DEFAULT_IMAGE_TOKEN}\n{own.question}"
        context = ids_of(prompt_of(text), tokenizer).unsqueeze(0)
        ids = ids_of(prompt_of(text, answer), tokenizer).unsqueeze(0)
        labels = ids.clone()
        labels[0, : context.shape[1]] = -100
        with torch.inference_mode():
            output = model(
                input_ids=ids,
                labels=labels,
                images=pixels,
                use_cache=True,
                image_sizes=[list(own.image.size)],
            )
        losses.append(float(output["loss"]))
        greedy.append(output["logits"].argmax(dim=-1))
    assert losses[0] < 0.5 < losses[1]
    assert greedy[0].shape[1] > context.shape[1]


def ask_as_vlmevalkit(loaded: Any, text: str, picture: Image.Image, **generation: Any) -> str:
    """Answer one question: a prompt of its own, stopping criteria, and no word of sizes unless given."""
    tokenizer, model, processor, _ = loaded
    pixels = process_images([picture], processor, SimpleNamespace(image_aspect_ratio="pad"))
    assert isinstance(pixels, torch.Tensor)
    system = prompt_of("").split("USER:")[0]
    ids = ids_of(f"{system}USER:  {DEFAULT_IMAGE_TOKEN} {text} ASSISTANT: ", tokenizer).unsqueeze(0)
    criterion = KeywordsStoppingCriteria(["</s>"], tokenizer, ids)
    settings: dict[str, Any] = {
        "do_sample": False,
        "temperature": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "top_p": None,
        "num_beams": 1,
        "use_cache": True,
    } | generation
    with torch.inference_mode():
        output = model.generate(
            ids, images=pixels.to(torch.float16), stopping_criteria=[criterion], **settings
        )
    return str(tokenizer.batch_decode(output, skip_special_tokens=True)[0]).strip()


def test_the_calls_of_vlmevalkit_give_answers_once_they_name_image_sizes(questions: list[Question]) -> None:
    loaded = load_pretrained_model(
        model_path=MODEL,
        model_base=None,
        model_name=get_model_name_from_path(MODEL),
        device="cpu",
        device_map="cpu",
    )
    own = questions[0]
    answer = ask_as_vlmevalkit(loaded, own.question, own.image, image_sizes=None)
    assert answer
    assert "USER" not in answer
    with pytest.raises(OverflowError):
        # What V1.0's callers get, and cut themselves: the prompt with its place of the picture first.
        ask_as_vlmevalkit(loaded, own.question, own.image)


TASK = """task: tiny_scenes
dataset_path: imagefolder
dataset_kwargs:
  data_dir: {data}
test_split: train
output_type: generate_until
doc_to_visual: !function tiny_functions.pictures
doc_to_text: !function tiny_functions.question
doc_to_target: answer
process_results: !function tiny_functions.results
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  num_beams: 1
  do_sample: false
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
FUNCTIONS = """
def pictures(doc):
    return [doc["image"].convert("RGB")]

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, answers):
    return {"exact": float(answers[0].strip() == doc["answer"])}
"""


@pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed (docs/harnesses.md)"
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_lmms_eval_runs_from_end_to_end(
    tmp_path: Path, questions: list[Question], expected: list[str], batch_size: int
) -> None:
    data = tmp_path / "task" / "data"
    data.mkdir(parents=True)
    rows = []
    for number, own in enumerate(questions):
        own.image.save(data / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "question": own.question, "answer": own.answer})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "task" / "tiny_scenes.yaml").write_text(TASK.format(data=data), "utf-8")
    (tmp_path / "task" / "tiny_functions.py").write_text(FUNCTIONS, "utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [
            sys.executable, "-m", "lmms_eval", "--model", "llava",
            "--model_args", f"pretrained={MODEL},device_map=auto,device=cpu",
            "--tasks", "tiny_scenes", "--include_path", str(tmp_path / "task"),
            "--batch_size", str(batch_size), "--output_path", str(tmp_path / "out"), "--log_samples",
        ],
        env={**os.environ, **offline, "PYTHONPATH": str(Path(llava.__file__).parents[1])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    (samples,) = (tmp_path / "out").rglob("*_samples_tiny_scenes.jsonl")
    records = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    answers = {record["doc_id"]: record["filtered_resps"] for record in records}
    assert [answers[number].strip() for number in range(len(questions))] == expected
    assert [record["exact"] for record in records] == [
        float(expected[record["doc_id"]] == questions[record["doc_id"]].answer) for record in records
    ]
