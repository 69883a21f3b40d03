"""A Request as the JSON body of llama.cpp's own `/completion`: the prompt exactly as we render it.

llama.cpp takes a text with a marker for each picture, encodes what is between two of them apart, puts the
begin-of-sequence token in front, and reads control tokens wherever they are spelt. So the spans are joined,
the leading spaces that the original's tokenizer puts are written out, and content that spells a control token
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.engine.constraining import check_format, guided_schema
from llava.engine.gguf_facts import GgufModel
from llava.engine.request import Request, SamplingParams
from llava.errors import PlaceholderError, PromptError, UsageError
from llava.rendering import Span

_MAX_SEED = 0xFFFF_FFFE
"""The number after it means "draw one" to llama.cpp."""
_PENALTY_WINDOW = 1 << 15
"""Tokens that the repetition penalty looks back on: llama.cpp allocates so many, and has no "all"."""


def prompt_chunks(request: Request, model: GgufModel) -> list[str]:
    """Return the texts around the pictures of a request, as llama.cpp has to encode them.

    Raises PromptError for content that llama.cpp would read as a control token.
    """
    if request.prompt is not None:
        spans = _spans_of_prompt(request.prompt, im_start_end=model.im_start_end)
    else:
        spans = model.template.render(
            request.turns, add_generation_prompt=True, im_start_end=model.im_start_end
        )
    _refuse_control_tokens(spans, model)
    chunks = [""]
    for span in spans:
        if span.kind == "image":
            chunks.append("")
        else:
            chunks[-1] += span.text
    if len(chunks) - 1 != len(request.images):
        raise PlaceholderError(
            f"the prompt has {len(chunks) - 1} place(s) for {len(request.images)} picture(s)",
            remedy="Give one place per picture.",
        )
    return chunks if model.adds_space else [_with_spaces(chunk, model) for chunk in chunks]


def completion_body(
    request: Request, model: GgufModel, *, marker: str, images: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the JSON of a request; marker: what stands for a picture; images: base64 of each.

    Raises PromptError, PlaceholderError, UsageError, and RequestError for a bad schema.
    """
    prompt: Any = marker.join(prompt_chunks(request, model))
    if images:
        prompt = {"prompt_string": prompt, "multimodal_data": list(images)}
    return {
        "prompt": prompt,
        "stream": True,
        "cache_prompt": True,
        "return_tokens": True,
        "timings_per_token": True,
        **_sampling_fields(request.sampling, model.template.stop_strings),
        **_format_fields(request.sampling),
    }


def _sampling_fields(sampling: SamplingParams, template_stop: Sequence[str]) -> dict[str, Any]:
    if sampling.num_beams > 1:
        raise UsageError(
            "llama.cpp has no beam search", remedy="Leave num_beams at 1, or use the torch engine."
        )
    return {
        "n_predict": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": _PENALTY_WINDOW if sampling.repetition_penalty != 1 else 0,
        "seed": -1 if sampling.seed is None else sampling.seed % _MAX_SEED,
        # In our order: llama.cpp's own filters before it divides by the temperature.
        "samplers": ["penalties", "temperature", "top_k", "top_p"],
        "stop": [*template_stop, *sampling.stop],
        # 0 would switch the log-probability of the chosen token off too.
        "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
    }


def _format_fields(sampling: SamplingParams) -> dict[str, Any]:
    if sampling.response_format is None:
        return {}
    # llama.cpp, which reads schemas by the same llguidance, answers freely where it cannot read one.
    check_format(sampling.response_format)
    return {"json_schema": guided_schema(sampling.response_format)}


def _spans_of_prompt(prompt: str, *, im_start_end: bool) -> list[Span]:
    """Split a rendered prompt at its placeholders; like the original, all of it is control text."""
    wrapped = f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}"
    before, after = (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN) if im_start_end else ("", "")
    if im_start_end:
        prompt = prompt.replace(wrapped, DEFAULT_IMAGE_TOKEN)
    first, *rest = prompt.split(DEFAULT_IMAGE_TOKEN)
    spans = [Span(first, "control")]
    for text in rest:
        spans += [
            Span(before, "control"),
            Span(DEFAULT_IMAGE_TOKEN, "image"),
            Span(after + text, "control"),
        ]
    return spans


def _refuse_control_tokens(spans: Sequence[Span], model: GgufModel) -> None:
    content = "\0".join(span.text for span in spans if span.kind == "text")
    spelt = [token for token in (*model.control_tokens, *model.added_tokens) if token in content]
    if spelt:
        raise PromptError(
            f"the dialogue spells {spelt[0]!r}, which llama.cpp would read as a control token",
            remedy="Leave it out, or use the torch engine, where content never becomes a control token.",
        )


def _with_spaces(chunk: str, model: GgufModel) -> str:
    """Put spaces where the original's tokenizer does: before the first run of text, or (legacy) all."""
    tokens = sorted((*model.control_tokens, *model.added_tokens), key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in tokens)
    parts = [part for part in re.split(f"({pattern})", chunk) if part] if tokens else [chunk]
    written = ""
    for index, part in enumerate(parts):
        if part in model.added_tokens:
            # The non-legacy tokenizer leaves its space alone in front of a token that was merely added.
            needs_space = index == 0 and not model.legacy
        else:
            needs_space = part not in model.control_tokens and (model.legacy or index == 0)
        written += f" {part}" if needs_space and part else part
    return written
