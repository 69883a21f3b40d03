"""OpenVINO graphs against torch: features, logits at every position, greedy tokens, every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llava.demo import example_images
from llava.demo.drawing import draw
from llava.demo.scenes import make_scene
from llava.engine.engine import ChatEngine
from llava.engine.frontend import Frontend
from llava.engine.openvino.paging import OpenVinoOptions
from llava.engine.openvino.runner import OpenVinoRunner
from llava.engine.openvino.support import WeightFormat
from llava.engine.runner import Chunk
from llava.model.builder import new_model
from llava.templates import PICTURE, Turn
from tests.engine.formats import FORMAT, assert_fits
from tests.engine.openvino.helpers import (
    EMBEDDED,
    NEEDS_BFLOAT16,
    continue_greedily,
    embeds_of,
    run_new,
    runner_of,
    same_start,
    torch_greedy,
)
from tests.model.folders import (
    CLIP,
    INTERNVIT,
    SMALL_CLIP,
    expected,
    loaded,
    small_config,
)

pytest.importorskip("openvino")
QUESTIONS = (
    "How many objects are there?",
    "Describe the picture.",
    "Is there a circle?",
    "What color is the largest object?",
)


@pytest.mark.parametrize(
    ("folder", "weight_format", "tolerance"),
    [
        (CLIP, "float32", 4e-6),
        (INTERNVIT, "float32", 4e-6),
        # Saved in 16 bits, so that nothing is lost.
        (EMBEDDED, "float16", 4e-6),
    ],
)
def test_features_are_those_of_torch(folder: Path, weight_format: WeightFormat, tolerance: float) -> None:
    model = loaded(folder).model
    size = loaded(folder).image_processor.rules.size
    pixels = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        reference = model.encode_images(pixels)
    features = runner_of(folder, weight_format).encode_images(pixels)
    assert features.dtype == torch.float32
    assert features.shape == reference.shape
    assert (features - reference).abs().max().item() < tolerance * reference.abs().max().item()


@pytest.mark.parametrize("folder", [CLIP, INTERNVIT], ids=lambda path: path.name)
def test_logits_at_every_position_are_those_of_torch(folder: Path) -> None:
    model = loaded(folder).model
    runner = runner_of(folder)
    ids = torch.randint(3, 900, (70,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        reference = model(inputs_embeds=model.get_input_embeddings()(ids)[None]).logits[0]
    row = runner.open(len(ids))
    steps = [runner.forward([Chunk(row, runner.embed(token[None]))]) for token in ids]
    logits = torch.cat(steps)
    assert (logits - reference).abs().max().item() < 1e-4
    runner.close(row, keep=False)


@pytest.mark.parametrize("folder", [CLIP, INTERNVIT], ids=lambda path: path.name)
def test_greedy_tokens_are_those_of_the_original(folder: Path) -> None:
    values, arrays = expected(folder)
    runner = runner_of(folder)
    pixels = torch.from_numpy(arrays["pixel_values"])
    ids = torch.tensor(values["ids_one"])
    expanded = torch.cat(
        [token.repeat(loaded(folder).num_image_tokens if token == -200 else 1) for token in ids]
    )
    prompt = embeds_of(runner, expanded, pixels[:1])
    row = runner.open(len(prompt) + 33)
    eos = frozenset({2})
    wanted = [token for token in values["gen_one"] if token not in eos]
    assert continue_greedily(runner, row, prompt, len(wanted), eos) == wanted


@pytest.mark.parametrize(
    ("text_type", "fields"),
    [
        (
            "llama",
            {
                "num_key_value_heads": 2,
                "attention_bias": True,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            },
        ),
        ("qwen2", {"num_key_value_heads": 2}),
        pytest.param(
            "llama",
            {
                "num_key_value_heads": 1,
                "tie_word_embeddings": True,
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param("mistral", {"num_key_value_heads": 2, "sliding_window": None}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"head_dim": 8, "num_key_value_heads": 2}, marks=pytest.mark.slow),
    ],
)
def test_other_language_models_are_those_of_torch(
    text_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = small_config(model_type=f"llava_{text_type}", **fields)
    model = new_model(config, SMALL_CLIP, image_size=56, seed=0).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            # New biases are zero: what ignored them would pass.
            torch.nn.init.normal_(parameter, std=0.5)
    runner = run_new(model, tmp_path)
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(2, 40, model.config.text_config.hidden_size, generator=generator)
    with torch.inference_mode():
        reference = model(inputs_embeds=embeds).logits
    rows = [runner.open(40) for _ in embeds]
    first = runner.forward([Chunk(rows[0], embeds[0, :7]), Chunk(rows[1], embeds[1, :33])])
    last = runner.forward([Chunk(rows[1], embeds[1, 33:]), Chunk(rows[0], embeds[0, 7:])])
    wanted = [reference[0, 6], reference[1, 32], reference[1, 39], reference[0, 39]]
    for logits, other in zip([*first, *last], wanted, strict=True):
        assert (logits - other).abs().max().item() < 1e-4


@pytest.mark.parametrize(
    ("weight_format", "least"), [("float32", 1.0), ("float16", 1.0), ("int8", 1.0), ("int4", 0.8)]
)
def test_the_embedded_model_answers_alike_in_every_format(weight_format: WeightFormat, least: float) -> None:
    _check_answers(runner_of(EMBEDDED, weight_format), least)


def _check_answers(runner: OpenVinoRunner, least: float) -> None:
    """Check that at least this share of the tokens of answers are torch's, up to the first that differs."""
    frontend = loaded(EMBEDDED)
    num_tokens = num_same = 0
    for seed, question in enumerate(QUESTIONS):
        picture = draw(make_scene(200_000 + seed, "held-out")).image
        turns = [Turn("user", (PICTURE, "\n", question))]
        batch = _processor()(turns, images=[picture])
        ids = batch["input_ids"][0]
        wanted = torch_greedy(frontend.model, ids, batch["pixel_values"], 48)
        prompt = embeds_of(runner, ids, batch["pixel_values"])
        row = runner.open(len(prompt) + 49)
        answer = continue_greedily(runner, row, prompt, 48, frozenset({2}))
        runner.close(row, keep=False)
        num_tokens += len(wanted)
        num_same += same_start(wanted, answer)
    assert num_tokens > 20
    assert num_same >= least * num_tokens


@NEEDS_BFLOAT16
def test_the_embedded_model_answers_alike_in_bfloat16() -> None:
    runner = runner_of(EMBEDDED, "float16", OpenVinoOptions(num_threads=2, precision="bfloat16"))
    assert runner.name == "openvino bfloat16"
    _check_answers(runner, 0.9)


def test_answers_are_held_to_a_schema() -> None:
    engine = ChatEngine(Frontend.of_loaded(loaded(EMBEDDED)), runner_of(EMBEDDED, "float32"))
    try:
        for seed, picture in enumerate(example_images()):
            for temperature in (0.0, 2.0):
                sampling: dict[str, Any] = {"temperature": temperature, "seed": seed}
                assert_fits(engine.ask(QUESTIONS[0], [picture], response_format=FORMAT, **sampling))
    finally:
        engine.close()


def _processor() -> Any:
    return Frontend.of_loaded(loaded(EMBEDDED)).processor
