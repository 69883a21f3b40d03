"""Who answers in bench.engine: our engines, and the ways they are measured against.

`generate`   transformers' `generate` on the same model, one request after the other.
`threads`    the original worker's way: a thread for each request, five in `generate` at once.
Nobody stops at an end-of-sequence token: random weights would end anywhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from PIL.Image import Image
from transformers.generation.streamers import BaseStreamer

from llava.engine.engine import ChatEngine
from llava.engine.frontend import Frontend
from llava.engine.protocol import Engine, read
from llava.engine.request import Request, SamplingParams
from llava.model.builder import LoadedModel
from llava.templates import Turn

ORIGINAL_CONCURRENCY = 5
"""`limit_model_concurrency` of the original's worker."""


@dataclass(frozen=True)
class Call:
    """A question in a dialogue about pictures."""

    turns: Sequence[Turn]
    images: Sequence[Image]
    num_new_tokens: int


class Served(NamedTuple):
    """What one request saw, in seconds from the moment it was asked."""

    first_s: float
    total_s: float


class Peer(Protocol):
    """Answers calls, from many threads."""

    def serve(self, call: Call) -> Served:
        """Answer a call to its end."""
        ...


class EnginePeer:
    """One of our engines."""

    def __init__(self, engine: Engine) -> None:
        """Let it not stop by itself, where that can be said."""
        if isinstance(engine, ChatEngine):
            engine.frontend = replace(engine.frontend, eos_ids=frozenset())
        self.engine = engine

    def serve(self, call: Call) -> Served:
        """Answer through the engine."""
        sampling = SamplingParams(max_new_tokens=call.num_new_tokens)
        request = Request(turns=call.turns, images=call.images, sampling=sampling)
        begin = time.perf_counter()
        answer = read(self.engine.submit(request))
        total_s = time.perf_counter() - begin
        assert answer.num_new_tokens == call.num_new_tokens, "an answer of another length"
        return Served(answer.timing.first_token_s, total_s)


class GeneratePeer:
    """transformers' `generate` on a model of its own, `concurrency` at once."""

    def __init__(self, loaded: LoadedModel, *, concurrency: int) -> None:
        """Take a model that no engine has."""
        self._model = loaded.model
        self._model.generation_config.eos_token_id = None
        self._processor = Frontend.of_loaded(loaded).processor
        self._semaphore = threading.Semaphore(concurrency)

    def serve(self, call: Call) -> Served:
        """Answer in a thread of its own, as the original's worker does."""
        begin = time.perf_counter()
        clock = _Clock()
        with self._semaphore:
            thread = threading.Thread(target=self._generate, args=(call, clock))
            thread.start()
            thread.join()
        assert len(clock.times) == call.num_new_tokens, "an answer of another length"
        return Served(clock.times[0] - begin, clock.times[-1] - begin)

    @torch.inference_mode()
    def _generate(self, call: Call, clock: _Clock) -> None:
        batch = self._processor(call.turns, call.images)
        self._model.generate(**batch, do_sample=False, max_new_tokens=call.num_new_tokens, streamer=clock)


class _Clock(BaseStreamer):
    """Notes when each new token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt's ids (none here: it is embeddings), then one id after the other."""
        if value.numel():
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""
