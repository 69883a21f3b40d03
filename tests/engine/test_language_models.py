"""The engine over every language model that is tried: saved, loaded, asked alone and in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

import llava
from llava.engine.request import Request, SamplingParams
from llava.model.builder import new_model
from llava.model.saving import rules_of, save_checkpoint
from llava.processing.tokenizer import load_tokenizer
from tests.engine.formats import FORMAT, assert_fits
from tests.model.folders import SMALL_INTERNVIT, small_config
from tests.model.test_modeling import LANGUAGE_MODELS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
IMAGE = str(FIXTURES / "images" / "0.png")
SIZES = {"vocab_size": 1000, "max_position_embeddings": 512}


@pytest.mark.parametrize("text_type", LANGUAGE_MODELS)
def test_answers_do_not_depend_on_the_batch(text_type: str, tmp_path: Path) -> None:
    length = {"max_seq_len": 512} if text_type == "mpt" else {}
    config = small_config(
        model_type=f"llava_{text_type}", **{**LANGUAGE_MODELS[text_type], **SIZES, **length}
    )
    model = new_model(config, SMALL_INTERNVIT, image_size=56, seed=0)
    tokenizer = load_tokenizer(FIXTURES / "llava-a-clip-mlp2x")
    folder = save_checkpoint(
        tmp_path / "x", model=model, tokenizer=tokenizer, rules=rules_of(model), template="vicuna_v1"
    )
    engine = llava.load(folder, device="cpu", dtype="float32")
    sampling = SamplingParams(max_new_tokens=8)
    requests = [
        Request.of_question("Hi", [], sampling),
        Request.of_question("What is shown in this picture, please?", [IMAGE], sampling),
        Request.of_question("Compare", [IMAGE, IMAGE], sampling),
    ]
    alone = [engine.generate([request])[0].text for request in requests]
    assert [answer.text for answer in engine.generate(requests)] == alone
    assert_fits(engine.ask("Hi", [IMAGE], response_format=FORMAT, max_new_tokens=300))
