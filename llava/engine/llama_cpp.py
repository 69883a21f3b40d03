"""The `llama.cpp` engine: GGUF files (4 to 16 bits) in this process, the fast way on a CPU for CLIP models.

xllamacpp runs llama.cpp's own server here: slots that join and leave between steps, prompts remembered by
their beginning, pictures included. It listens on a loopback port behind a key that only we know, so that the
code that asks servers (`http_engine`) serves here too; what is asked is its raw completion, never its chat.
Of a token that ends inside a character llama.cpp tells no log-probability: an answer then has fewer of them.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.engine.feature_carrier import Carried, CarriedPictures, Tower
from llava.engine.gguf_facts import GgufModel, read_model
from llava.engine.gguf_tower import GgufTower
from llava.engine.http_endpoint import Endpoint, HttpOptions
from llava.engine.http_engine import Delta, HttpEngine, Written
from llava.engine.http_faults import Fault, shorten
from llava.engine.llama_cpp_prompt import completion_body
from llava.engine.pushed_stream import Counts
from llava.engine.remote_events import count_of, json_object, nonsense, read_logprobs
from llava.engine.request import FinishReason, TokenLogprob
from llava.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DependencyError,
    EngineError,
    ImageLimitError,
    LlavaError,
    UsageError,
)
from llava.processing.pixels import ImageProcessor

if TYPE_CHECKING:
    from llava.engine.request import Request
    from llava.templates import ChatTemplate

_COMPLETION = "/completion"
_REASONS: dict[str, FinishReason] = {"eos": "stop", "word": "stop", "limit": "length"}
_NO_LIMIT_S = 24 * 3600.0
"""Our own process does not hang without a reason; a long prompt on a slow machine takes what it takes."""
_QUIET = -1
MAX_CONTEXT_LENGTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """How llama.cpp runs a model. Its memory for keys and values is num_slots times context_length."""

    num_slots: int = 4
    """Answers decoded at a time; further requests wait."""
    context_length: int | None = None
    """Tokens of prompt and answer in a slot; None takes the model's own, at most MAX_CONTEXT_LENGTH."""
    num_threads: int | None = None
    """CPU threads; None takes the CPUs that this process may use."""
    num_gpu_layers: int = -1
    """Layers on the GPU, where xllamacpp was built for one; -1 leaves it to llama.cpp."""
    cache_mib: int = 1024
    """Memory for prompts that no slot holds any more; 0 keeps none."""
    max_images: int = 16
    """Pictures in one request."""
    num_kept_pictures: int = 16
    """Pictures whose features are kept, the last ones used."""
    max_waiting: int = 1024
    """Requests that may wait; one more is refused with EngineBusyError."""

    def __post_init__(self) -> None:
        for name, least in (("num_slots", 1), ("num_gpu_layers", -1), ("cache_mib", 0), ("max_images", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}", remedy=f"It must be at least {least}."
                )
        for name, least in (("context_length", 64), ("num_threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value!r}", remedy=f"It must be at least {least}.")


class LlamaCppEngine(HttpEngine):
    """Answers requests by llama.cpp in this process."""

    has_formats = True

    def __init__(
        self, model: GgufModel, *, options: LlamaCppOptions | None = None, tower: Tower | None = None
    ) -> None:
        """Load a model that `gguf_facts.read_model` described.

        tower: what computes the features of pictures; None takes the mmproj's. Any will do, InternViT too.
        Raises CheckpointError when llama.cpp cannot load it, DependencyError.
        """
        self._llama_options = options or LlamaCppOptions()
        self.model_facts = model
        files = tempfile.TemporaryDirectory(prefix="llava-llama-cpp-")
        self._release = weakref.finalize(self, files.cleanup)
        self._pictures = self._prepare_pictures(model, tower, Path(files.name) / "mmproj.gguf")
        self.notices = model.notices
        if self._pictures is None:
            unseen = f"No mmproj file lies beside {model.path.name}: this model cannot be shown pictures."
            self.notices = (*model.notices, unseen)
        secret = secrets.token_urlsafe(32)
        self._server: Any = _start(model, self._llama_options, secret, mmproj=self._pictures)
        limits = HttpOptions(
            # More would wait inside llama.cpp, where waiting cannot be told from computing.
            max_concurrency=self._llama_options.num_slots,
            max_waiting=self._llama_options.max_waiting,
            first_token_timeout_s=_NO_LIMIT_S,
            token_timeout_s=_NO_LIMIT_S,
        )
        address = self._server.listening_address
        super().__init__(
            Endpoint(address, api_key=secret, options=limits, as_error=_as_error), options=limits
        )
        with ExitStack() as undo:
            undo.callback(self.close)
            self._marker = self._loop.run(self._read_marker())
            undo.pop_all()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mmproj: str | os.PathLike[str] | None = None,
        *,
        template: str | None = None,
        num_slots: int = 4,
        context_length: int | None = None,
        num_threads: int | None = None,
        tower: Tower | None = None,
    ) -> LlamaCppEngine:
        """Load a GGUF file, or the one model in a folder; the mmproj is found beside it unless it is given.

        template: prompt template, over the file's. tower: what computes the features of pictures instead of
        the mmproj's. Raises FileError, CheckpointError, ConfigError,
        DependencyError.
        """
        options = LlamaCppOptions(num_slots=num_slots, context_length=context_length, num_threads=num_threads)
        facts = read_model(Path(path), mmproj=Path(mmproj) if mmproj is not None else None, template=template)
        return cls(facts, options=options, tower=tower)

    @property
    def name(self) -> str:
        """The model, its number format and what runs it."""
        return f"llama.cpp {self.model_facts.name}"

    @property
    def template(self) -> ChatTemplate:
        """The prompt template in use."""
        return self.model_facts.template

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read for one new token."""
        return self.model_facts.bytes_per_token

    def close(self) -> None:
        """End what runs and unload the model; later requests are refused. May be called twice."""
        super().close()
        self._server = None
        self._release()

    def _prepare_pictures(
        self, model: GgufModel, tower: Tower | None, mmproj: Path
    ) -> CarriedPictures | None:
        if tower is None and model.mmproj is not None:
            tower = GgufTower(model.mmproj)
        if tower is None or model.rules is None:
            return None
        return CarriedPictures(
            tower,
            ImageProcessor(model.rules),
            mmproj,
            num_kept=self._llama_options.num_kept_pictures,
        )

    @property
    def _local_stop(self) -> tuple[str, ...]:
        return self.template.stop_strings

    def _written(self, request: Request) -> Written:
        if request.images and self._pictures is None:
            raise UsageError(
                "this model was loaded without its mmproj file and sees no pictures",
                remedy="Put the mmproj file beside the model's, or name it.",
            )
        if len(request.images) > self._llama_options.max_images:
            raise ImageLimitError(
                f"{len(request.images)} pictures in one request",
                remedy=f"Give at most {self._llama_options.max_images}.",
            )
        carried = self._pictures.carried(request.images) if self._pictures is not None else Carried()
        body = completion_body(request, self.model_facts, marker=self._marker, images=carried.pictures)
        return Written(_COMPLETION, json.dumps(body).encode(), carried.tower_s, carried.num_reused)

    def _read(self, data: str) -> Delta:
        return read_completion_event(data)

    async def _read_marker(self) -> str:
        """Ask what stands for a picture: llama.cpp draws it at every start, so that nobody types it."""
        properties = json_object(await self._endpoint.get("/props") or "")
        return str(properties.get("media_marker") or "<__media__>")


def read_completion_event(data: str) -> Delta:
    """Return what an event of llama.cpp's `/completion` adds; raises Fault for an error or nonsense."""
    event = json_object(data)
    text, tokens, timings = event.get("content", ""), event.get("tokens", []), event.get("timings") or {}
    if not isinstance(text, str) or not isinstance(tokens, list) or not isinstance(timings, dict):
        raise nonsense(data)
    is_last = event.get("stop") is True
    return Delta(
        text=text,
        num_tokens=len(tokens),
        logprobs=_logprobs(event.get("completion_probabilities"), data) if tokens else (),
        finish_reason=_reason(event, data) if is_last else None,
        counts=Counts(
            num_prompt_tokens=count_of(event.get("tokens_evaluated")),
            num_new_tokens=count_of(event.get("tokens_predicted")),
            num_cached_tokens=count_of(timings.get("cache_n")),
        ),
        is_last=is_last,
    )


def _reason(event: dict[str, Any], data: str) -> FinishReason:
    reason = event.get("stop_type")
    if reason not in _REASONS:
        raise nonsense(data)
    return _REASONS[reason]


def _logprobs(found: object, data: str) -> tuple[TokenLogprob, ...]:
    return read_logprobs(found, data) if isinstance(found, list) else ()


def _as_error(fault: Fault, url: str, *, secret: str | None, num_attempts: int) -> LlavaError:
    """Return the error of a fault of our own server; its address would tell nobody anything."""
    del url, secret, num_attempts
    said = shorten(fault.said)
    if "exceeds the available context size" in fault.said:
        return ContextLengthError(said, remedy="Shorten the conversation, or raise context_length.")
    return EngineError(f"llama.cpp {fault.what}: {said}" if said else f"llama.cpp {fault.what}")


def _start(model: GgufModel, options: LlamaCppOptions, secret: str, *, mmproj: CarriedPictures | None) -> Any:
    """Load the model into a server that listens on a loopback port; raises CheckpointError."""
    try:
        import xllamacpp
    except ImportError:
        raise DependencyError.of_extra("xllamacpp", "cpu", "running GGUF files") from None
    context = options.context_length or min(model.context_length, MAX_CONTEXT_LENGTH)
    threads = options.num_threads or _num_cpus()
    params = xllamacpp.CommonParams()
    params.model.path = str(model.path)
    if mmproj is not None:
        params.mmproj.path = str(mmproj.mmproj)
        # A GPU may multiply in 16 bits, which would cut the features that the pixels carry.
        params.mmproj_use_gpu = False
    params.hostnames = ["127.0.0.1"]
    params.api_keys = [secret]
    params.ui = False
    params.endpoint_slots = False
    params.n_parallel = options.num_slots
    params.n_ctx = context * options.num_slots
    params.kv_unified = False
    params.n_gpu_layers = options.num_gpu_layers
    params.cache_ram_mib = options.cache_mib
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = _QUIET
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise CheckpointError(
            f"llama.cpp cannot load {model.path}: {error}",
            remedy="Get the files again, or export them anew; see what it prints with --debug.",
        ) from None


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
