"""Where the page's answers come from: models of this process, or workers behind a controller.

The page knows only `Backend`. Both kinds end an answer when its reading ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llava.engine.request import Answer, SamplingParams, Timing
from llava.serve.protocol import GenerateRequest
from llava.templates import ChatTemplate, Picture, Turn, get_template, guess_template

if TYPE_CHECKING:
    from llava.processing.image_rules import ImageRules
    from llava.serve.client import AsyncServingClient
    from llava.serve.served import ServedModels
    from llava.serve.web.history import Dialogue


_PICTURE_WORD = re.compile("<+image>+")
"""With all brackets around it: of `<<image>>`, taking out the inner ones would leave the word itself."""


class Stages(NamedTuple):
    """Where the time of an answer went; a worker of the original says nothing."""

    timing: Timing
    num_new_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int

    @property
    def prefill_s(self) -> float:
        """What the first token took beyond waiting and pictures."""
        return max(0.0, self.timing.first_token_s - self.timing.queued_s - self.timing.image_s)

    @property
    def tokens_per_second(self) -> float:
        """After the first token; 0 where there was only one."""
        return self.timing.tokens_per_second(self.num_new_tokens)


class Piece(NamedTuple):
    """What is new of an answer; the last one has the stages."""

    text: str
    stages: Stages | None = None


class Backend(Protocol):
    """Models that answer dialogues."""

    async def models(self) -> list[str]:
        """Return the names of the models that answer now; raises LlavaErrors."""
        ...

    async def template(self, model: str) -> ChatTemplate:
        """Return a model's prompt template."""
        ...

    def rules(self, model: str) -> ImageRules | None:
        """Return what a model does with pictures; None where it is not known here."""
        ...

    def stream(
        self, model: str, dialogue: Dialogue, sampling: SamplingParams, *, request_id: str
    ) -> AsyncGenerator[Piece, None]:
        """Yield an answer piece by piece; raises LlavaErrors."""
        ...


def prompt_of(template: ChatTemplate, turns: Sequence[Turn]) -> str:
    """Return the prompt that the model reads, one `<image>` for each picture."""
    return "".join(span.text for span in template.render(turns, add_generation_prompt=True))


class LocalBackend:
    """The models of `llava serve`, through their queues."""

    def __init__(self, served: ServedModels) -> None:
        self._served = served

    async def models(self) -> list[str]:
        """See Backend; so with all that follow."""
        return [model.name for model in self._served]

    async def template(self, model: str) -> ChatTemplate:
        """Return a model's prompt template."""
        return self._served.get(model).queue.engine.template

    def rules(self, model: str) -> ImageRules | None:
        """Return what a model does with pictures."""
        from llava.engine.engine import ChatEngine

        engine = self._served.get(model).queue.engine
        return engine.processor.image_processor.rules if isinstance(engine, ChatEngine) else None

    async def stream(
        self, model: str, dialogue: Dialogue, sampling: SamplingParams, *, request_id: str
    ) -> AsyncGenerator[Piece, None]:
        """Yield an answer piece by piece."""
        del request_id
        queue = self._served.get(model).queue
        async with queue.events(lambda: dialogue.request(sampling)) as events:
            async for event in events:
                if event.error is not None:
                    raise event.error
                if event.piece is not None:
                    yield Piece(event.piece)
                if event.answer is not None:
                    yield Piece("", _stages_of(event.answer))


def _stages_of(answer: Answer) -> Stages:
    return Stages(answer.timing, answer.num_new_tokens, answer.num_prompt_tokens, answer.num_cached_tokens)


class ControllerBackend:
    """Workers of ours or the original's, found through a controller."""

    def __init__(self, client: AsyncServingClient) -> None:
        self._client = client
        self._templates: dict[str, str] = {}

    async def models(self) -> list[str]:
        """Ask every worker for its status, then for the list."""
        await self._client.refresh()
        self._templates = await self._client.templates()
        return await self._client.models()

    async def template(self, model: str) -> ChatTemplate:
        """Return the template that the worker says, else the one that the original takes for the name."""
        if model not in self._templates:
            self._templates = await self._client.templates()
        told = self._templates.get(model)
        return get_template(told) if told else guess_template(model).template

    def rules(self, model: str) -> ImageRules | None:
        """Return None: workers do not say."""
        del model
        return None

    async def stream(
        self, model: str, dialogue: Dialogue, sampling: SamplingParams, *, request_id: str
    ) -> AsyncGenerator[Piece, None]:
        """Yield an answer piece by piece."""
        template = await self.template(model)
        request = await asyncio.to_thread(dialogue.request, sampling)
        turns = [Turn(turn.role, tuple(_harmless(part) for part in turn.content)) for turn in request.turns]
        asked = GenerateRequest(
            prompt=prompt_of(template, turns),
            model=model,
            images=await asyncio.to_thread(dialogue.worker_pictures),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            stop=template.stop_strings[:1],  # the original's workers take a single one
            seed=sampling.seed,
        )
        # The controller passes it on: it knows who holds the conversation, and who is alive.
        stream = self._client.stream(asked, request_id=request_id)
        async with aclosing(stream) as messages:
            async for message in messages:
                stages = _told_stages(message.timing, message.usage) if message.timing else None
                yield Piece(message.delta or "", stages)


def _told_stages(timing: Mapping[str, float], usage: Mapping[str, int]) -> Stages:
    names = ("queued_s", "image_s", "first_token_s", "total_s")
    counts = (usage.get(name, 0) for name in ("new_tokens", "prompt_tokens", "cached_tokens"))
    return Stages(Timing(**{name: timing.get(name, 0.0) for name in names}), *counts)


def _harmless(part: str | Picture) -> str | Picture:
    """Take the word that stands for a picture out of what a person wrote: this protocol is text alone."""
    return _PICTURE_WORD.sub("image", part) if isinstance(part, str) else part
