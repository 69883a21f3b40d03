"""A Request as the JSON body of an OpenAI-compatible chat endpoint.

Source of the format: the OpenAI chat completions API; `top_k`, `min_p` and the repetition penalty are what
vLLM, SGLang and llama-server add to it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from llava.engine.request import JsonFormat, Request, SamplingParams
from llava.errors import UsageError
from llava.processing.fetch import fetch_picture
from llava.processing.images import DEFAULT_LIMITS, ImageLimits, ImageSource, load_image
from llava.processing.sources import read_source
from llava.templates import Picture, Turn

_SENT_AS_THEY_ARE = ("PNG", "JPEG")
_MAX_LLAMA_SEED = 0xFFFF_FFFE
"""The number after it means "draw one" to llama.cpp."""
_LLAMA_PENALTY_WINDOW = 1 << 15
"""Tokens that the repetition penalty looks back on; llama.cpp allocates so many, and has no "all"."""


def chat_body(
    request: Request,
    *,
    model: str,
    server: str,
    limits: ImageLimits = DEFAULT_LIMITS,
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """Return the JSON of a request.

    server: what calls itself the owner of the model ("vllm", "llamacpp", ...); decides which fields beyond
    OpenAI's it can be given. extra: fields to add or replace; None removes one.
    Raises UsageError for what a chat endpoint cannot be asked, ImageError for a bad picture.
    """
    if request.prompt is not None:
        raise UsageError(
            "a rendered prompt cannot be sent to a chat endpoint, which renders prompts itself",
            remedy="Give the dialogue as turns.",
        )
    pictures = iter([picture_uri(image, limits) for image in request.images])
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(turn, pictures) for turn in request.turns],
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling_fields(request.sampling, server=server),
        **(extra or {}),
    }
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def picture_uri(source: ImageSource, limits: ImageLimits) -> str:
    """Return a picture as a data URI: its file's own bytes where they say no more than its pixels, or a PNG.

    A picture that has to be turned, flattened or reduced to 8 bit, or whose EXIF data tells where and with
    what it was taken, is written anew. Raises ImageError and ImageLimitError.
    """
    data = None
    if isinstance(source, str | bytes | bytearray | memoryview) or hasattr(source, "__fspath__"):
        data, _ = read_source(source, limits, allow_url=False, allow_path=True, fetch=fetch_picture)
    image = load_image(source if data is None else data, limits=limits)
    # Only an untouched picture still knows its format.
    if data is not None and image.format in _SENT_AS_THEY_ARE and not image.getexif():
        kind = image.format.lower()
    else:
        written = io.BytesIO()
        image.save(written, "PNG")
        data, kind = written.getvalue(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def sampling_fields(sampling: SamplingParams, *, server: str) -> dict[str, Any]:
    """Return the fields that say how to choose tokens; raises UsageError for beam search."""
    if sampling.num_beams > 1:
        raise UsageError(
            "an endpoint cannot be asked for beam search", remedy="Leave num_beams at 1, or use torch."
        )
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed % _MAX_LLAMA_SEED if server == "llamacpp" else sampling.seed
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.response_format is not None:
        fields["response_format"] = _format_field(sampling.response_format)
    return fields | _extra_fields(sampling, server)


def _format_field(wanted: JsonFormat) -> dict[str, Any]:
    if wanted.schema is None:
        return {"type": "json_object"}
    described = {"name": wanted.name, "schema": wanted.to_value(), "strict": wanted.is_strict}
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in described.items() if value is not None},
    }


def _extra_fields(sampling: SamplingParams, server: str) -> dict[str, Any]:
    """Return what OpenAI's API lacks. Servers known to have it get it always: their defaults filter too."""
    everything: dict[str, dict[str, Any]] = {
        "llamacpp": {
            "top_k": sampling.top_k,
            "min_p": 0,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": _LLAMA_PENALTY_WINDOW,
        },
        "vllm": {
            "top_k": sampling.top_k or -1,
            "min_p": 0,
            "repetition_penalty": sampling.repetition_penalty,
        },
    }
    everything["sglang"] = everything["vllm"]
    if server in everything:
        return everything[server]
    fields: dict[str, Any] = {}
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1:
        fields["repetition_penalty"] = sampling.repetition_penalty
    return fields


def _message(turn: Turn, pictures: Iterator[str]) -> dict[str, Any]:
    """Write a turn; one that is only text is written as text, which every server takes."""
    parts: list[dict[str, Any]] = []
    for part in turn.content:
        if isinstance(part, Picture):
            parts.append({"type": "image_url", "image_url": {"url": next(pictures)}})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part
        else:
            parts.append({"type": "text", "text": part})
    if all(part["type"] == "text" for part in parts):
        return {"role": turn.role, "content": "".join(part["text"] for part in parts)}
    for before, after in pairwise(parts):
        # The line break after a picture is layout, and every template of such a server writes its own.
        if before["type"] == "image_url" and after["type"] == "text":
            after["text"] = after["text"].removeprefix("\n")
    return {"role": turn.role, "content": [part for part in parts if part.get("text") != ""]}
