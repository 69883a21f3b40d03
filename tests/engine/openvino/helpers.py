"""Converted models for the tests, prompts as embeddings, and the plainest greedy loop over a runner."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llava.demo import embedded_model_path
from llava.engine.openvino.conversion import convert
from llava.engine.openvino.paging import OpenVinoOptions
from llava.engine.openvino.runner import OpenVinoRunner, PagedRow
from llava.engine.openvino.support import WeightFormat, why_no_bfloat16
from llava.engine.runner import Chunk
from llava.model.modeling import LlavaForCausalLM
from tests.model.folders import loaded

EMBEDDED = embedded_model_path()
ONE_THREAD = OpenVinoOptions(num_threads=1)
NEEDS_BFLOAT16 = pytest.mark.skipif(why_no_bfloat16(2) is not None, reason="no bfloat16 for OpenVINO here")


@functools.lru_cache(maxsize=16)
def converted(folder: Path, weight_format: WeightFormat) -> Path:
    """Return a folder with the graphs of a checkpoint, made once in a test run."""
    target = Path(tempfile.mkdtemp(prefix="llava-openvino-"))
    convert(loaded(folder).model, target, weight_format, report=lambda _: None)
    return target


@functools.lru_cache(maxsize=16)
def runner_of(
    folder: Path, weight_format: WeightFormat = "float32", options: OpenVinoOptions = ONE_THREAD
) -> OpenVinoRunner:
    """Return the runner of a checkpoint, made once in a test run; rows that a test leaves open stay open."""
    return OpenVinoRunner(
        converted(folder, weight_format),
        weight_format=weight_format,
        context_length=loaded(folder).context_length,
        options=options,
    )


def run_new(model: LlavaForCausalLM, folder: Path, weight_format: WeightFormat = "float32") -> OpenVinoRunner:
    """Convert a model that no folder holds, and return its runner."""
    convert(model, folder, weight_format, report=lambda _: None)
    return OpenVinoRunner(folder, weight_format=weight_format, context_length=256, options=ONE_THREAD)


def embeds_of(runner: OpenVinoRunner, ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
    """Return float32[L, C] of int64[L] with the features of the pictures where ids are -200."""
    embeds = runner.embed(ids)
    if pixel_values is not None:
        embeds[ids == -200] = runner.encode_images(pixel_values).flatten(0, 1)
    return embeds


def continue_greedily(
    runner: OpenVinoRunner, row: PagedRow, prompt: torch.Tensor, count: int, eos_ids: frozenset[int]
) -> list[int]:
    """Prefill what the row lacks of `prompt: float32[L, C]`, decode up to `count` tokens, without the end."""
    logits = runner.forward([Chunk(row, prompt[row.num_tokens :])])
    tokens: list[int] = []
    while True:
        token = int(logits.argmax())
        if token in eos_ids or len(tokens) == count:
            return tokens
        tokens.append(token)
        logits = runner.forward([Chunk(row, runner.embed(torch.tensor([token])))])


@torch.inference_mode()
def torch_greedy(
    model: LlavaForCausalLM, ids: torch.Tensor, pixel_values: torch.Tensor | None, count: int
) -> list[int]:
    """Return what transformers' generate continues int64[L] with, without the end."""
    pictures = {} if pixel_values is None else {"pixel_values": pixel_values}
    generated = model.generate(ids[None], max_new_tokens=count, do_sample=False, **pictures)[0].tolist()
    new = generated[len(ids) :] if len(generated) > len(ids) else generated
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, Sequence) else {end}
    return [token for token in new if token not in ends]


def same_start(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two answers begin alike with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
