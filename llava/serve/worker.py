"""A model behind the original's worker protocol: requests in, frames out, over any engine.

    GenerateRequest -> place in the queue -> engine -> pieces -> frames

`worker_routes` puts it on the network, `model_worker` is its command.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from llava.engine.request import Request, SamplingParams
from llava.errors import ContextLengthError, RequestError, UnavailableError
from llava.serve.prompt_reading import read_prompt
from llava.serve.protocol import (
    GREEDY_BELOW,
    NO_ROOM,
    SMALLEST_TOP_P,
    GenerateRequest,
    StreamMessage,
    WorkerStatus,
)
from llava.serve.request_queue import QueueOptions, RequestQueue

if TYPE_CHECKING:
    from llava.engine.protocol import Engine
    from llava.engine.request import Answer
    from llava.processing.images import ImageSource
    from llava.serve.frames import Frames


class ModelWorker:
    """Answers generate requests with one model. Used from the event loop's thread, but for `take`."""

    def __init__(self, *, options: QueueOptions | None = None, speed: float = 1.0) -> None:
        """No model yet: requests are refused until `take`. speed: relative to other workers."""
        self.options = options or QueueOptions()
        self.when_changed: Callable[[], None] = lambda: None
        """Called when a request begins or ends, so that the controller can be told."""
        self.num_requests = 0
        """Under way or waiting."""
        self._queue: RequestQueue | None = None
        self._speed = speed
        self._name = ""
        self._takes_prompts = True
        self._instance = secrets.token_hex(8)

    def take(self, engine: Engine, *, name: str, takes_prompts: bool = True) -> None:
        """Answer with `engine` from now on. takes_prompts: false for one that takes only dialogues."""
        self._name, self._takes_prompts = name, takes_prompts
        self._queue = RequestQueue(engine, self.options)

    @property
    def queue(self) -> RequestQueue:
        """The engine and its requests; raises UnavailableError before there is one."""
        if self._queue is None:
            raise UnavailableError("The model is still loading", remedy="Try again in a moment.")
        return self._queue

    def status(self) -> WorkerStatus:
        """Return what a controller should know; raises UnavailableError before a model is there."""
        return WorkerStatus(
            model_names=(self._name,),
            speed=self._speed,
            queue_length=self.num_requests,
            templates={self._name: self.queue.engine.template.name},
            instance=self._instance,
        )

    async def frames(self, request: GenerateRequest) -> Frames:
        """Yield the frames of an answer; raises LlavaErrors before or between them."""
        self.num_requests += 1
        self.when_changed()
        answer = self._deltas(request) if request.deltas else self._everything_so_far(request)
        try:
            async with aclosing(answer) as frames:
                async for frame in frames:
                    yield frame
        finally:
            self.num_requests -= 1
            self.when_changed()

    def close(self) -> None:
        """End the engine and its threads."""
        if self._queue is not None:
            self._queue.close()
            self._queue.engine.close()

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[bytes, None]:
        """Yield what is new, and in the end the figures."""
        async with self.queue.events(lambda: self._prepared(request)) as events:
            async for event in events:
                if event.piece is not None:
                    yield StreamMessage(delta=event.piece).to_frame()
                if event.answer is not None:
                    yield _last_message(event.answer).to_frame()

    async def _everything_so_far(self, request: GenerateRequest) -> AsyncGenerator[bytes, None]:
        """Yield the prompt and all text with every piece, as the original does."""
        said, has_said = request.prompt, False
        try:
            async with self.queue.events(lambda: self._prepared(request)) as events:
                async for event in events:
                    if event.piece is not None:
                        said, has_said = said + event.piece, True
                        yield StreamMessage(text=said).to_frame()
        except ContextLengthError:
            # An ordinary answer there, which its page shows in the chat.
            said, has_said = said + NO_ROOM, False
        if not has_said:
            yield StreamMessage(text=said).to_frame()

    def _prepared(self, request: GenerateRequest) -> Request:
        """Return a request as the engine takes it; raises RequestError, PromptError, ImageError."""
        if request.max_new_tokens < 1:
            if not request.deltas:
                raise ContextLengthError("no room is left for an answer")
            raise RequestError("max_new_tokens is 0", remedy="It must be at least 1.")
        sampling, images = _sampling(request), _decoded(request.images)
        if self._takes_prompts:
            return Request(prompt=request.prompt, images=images, sampling=sampling)
        dialogue = read_prompt(request.prompt, preferred=self.queue.engine.template.name)
        return Request(turns=dialogue.turns, images=images, sampling=sampling)


def _decoded(images: tuple[str, ...]) -> list[ImageSource]:
    """Decode pictures; never a path or an address, whatever the text says."""
    from llava.processing.images import load_image

    return [load_image(image, allow_path=False, allow_url=False) for image in images]


def _sampling(request: GenerateRequest) -> SamplingParams:
    return SamplingParams(
        temperature=request.temperature if request.temperature > GREEDY_BELOW else 0.0,
        top_p=max(request.top_p, SMALLEST_TOP_P),
        top_k=request.top_k,
        repetition_penalty=request.repetition_penalty,
        max_new_tokens=request.max_new_tokens,
        stop=request.stop,
        seed=request.seed,
    )


def _last_message(answer: Answer) -> StreamMessage:
    timing = answer.timing
    return StreamMessage(
        delta="",
        finish_reason=answer.finish_reason,
        usage={
            "prompt_tokens": answer.num_prompt_tokens,
            "cached_tokens": answer.num_cached_tokens,
            "new_tokens": answer.num_new_tokens,
        },
        timing={
            "queued_s": round(timing.queued_s, 6),
            "image_s": round(timing.image_s, 6),
            "first_token_s": round(timing.first_token_s, 6),
            "total_s": round(timing.total_s, 6),
        },
    )
