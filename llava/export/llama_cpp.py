"""Ask llama.cpp the questions that certify an export, through xllamacpp's server in this process.

A picture is sent as the engine's own preprocessing leaves it, square and of the tower's size, where llama.cpp
copies pixels instead of resizing them: what is compared is the model, not two ways of resizing.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llava.errors import DependencyError, EngineError
from llava.export.outcomes import MAX_NEW_TOKENS, Case
from llava.processing.images import load_image
from llava.processing.spelling import spell

if TYPE_CHECKING:
    from llava.export.gguf import GgufFiles
    from llava.processing.processor import Processor

_NUM_LIKELIEST = 5
_TIMEOUT_S = 600


class Reply(NamedTuple):
    """What llama.cpp answered."""

    token_ids: list[int]
    """The answer's."""
    num_prompt_tokens: int
    likeliest: dict[int, dict[int, float]]
    """Place in the answer -> the likeliest tokens there and the logarithms of their probabilities. llama.cpp
    leaves out places that end in the middle of a character."""
    text: str


class LlamaCpp:
    """A llama.cpp server over a pair of GGUF files."""

    def __init__(self, files: GgufFiles, *, context_length: int, is_exact: bool) -> None:
        """Load the files; is_exact: keep keys and values in 32 bits, attention without its fast kernel.

        Raises DependencyError without xllamacpp, EngineError when llama.cpp refuses the files.
        """
        xllamacpp = _import_xllamacpp()
        params = xllamacpp.CommonParams()
        params.model.path = str(files.model)
        if files.projector is not None:
            params.mmproj.path = str(files.projector)
        params.n_ctx = context_length
        params.warmup = False
        # llama.cpp's threads wait busily: more of them than cores that are free are slower than one.
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = torch.get_num_threads()
        params.fit_params = False
        params.endpoint_props = True
        params.verbosity = 0
        if is_exact:
            params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
            params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(f"llama.cpp cannot load {files.model}: {error}") from error
        self.properties = self._post("/props", None)

    def answer(self, case: Case, processor: Processor) -> Reply:
        """Answer a case greedily."""
        pictures = [_png(processor, path) for path in case.images]
        marker = self.properties.get("media_marker", "<__media__>")
        prompt = spell(processor.encode(case.turns), processor.tokenizer, picture=marker)
        reply = self._post(
            "/completion",
            {
                "prompt": {"prompt_string": prompt, "multimodal_data": pictures} if pictures else prompt,
                "n_predict": MAX_NEW_TOKENS,
                "temperature": 0,
                "n_probs": _NUM_LIKELIEST,
                "return_tokens": True,
                "cache_prompt": False,
            },
        )
        return Reply(
            token_ids=reply["tokens"],
            num_prompt_tokens=reply["tokens_evaluated"],
            likeliest=_likeliest(reply),
            text=reply["content"],
        )

    def apply_template(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the prompt that the file's own chat template makes of messages."""
        return str(self._post("/apply-template", {"messages": list(messages)})["prompt"])

    def _post(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                content: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read().decode("utf-8", "replace").split())
            raise EngineError(f"llama.cpp refused {path}: {reason}") from error
        return content


def _likeliest(reply: dict[str, Any]) -> dict[int, dict[int, float]]:
    """Return the log-probabilities by place: those reported are some of the answer's tokens, in order."""
    places: dict[int, dict[int, float]] = {}
    place = 0
    for entry in reply.get("completion_probabilities", []):
        place = reply["tokens"].index(entry["id"], place)
        places[place] = {choice["id"]: choice["logprob"] for choice in entry["top_logprobs"]}
        place += 1
    return places


def _import_xllamacpp() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise DependencyError.of_extra("xllamacpp", "cpu", "running GGUF files") from error
    return xllamacpp


def _png(processor: Processor, path: Path) -> str:
    stream = io.BytesIO()
    processor.image_processor.preview(load_image(str(path))).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
