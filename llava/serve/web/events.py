"""What the page's events do: each takes what the browser holds and returns what it shows next."""

from __future__ import annotations

import asyncio
import html
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gradio as gr

from llava.engine.request import SamplingParams
from llava.errors import ConfigError, LlavaError, UsageError
from llava.serve.http.errors import as_llava_error, log_error
from llava.serve.http.request_id import new_request_id
from llava.serve.protocol import SMALLEST_TOP_P
from llava.serve.web.asking import Pane, ask, error_line, stages_line
from llava.serve.web.backend import prompt_of
from llava.serve.web.display import messages_of, pictures_of, read_uploads, saved, turn_at
from llava.serve.web.history import Dialogue
from llava.serve.web.history_file import from_file, from_json, to_json
from llava.serve.web.model_list import ModelList, choose_model
from llava.serve.web.moderation import MESSAGE
from llava.serve.web.pictures import check_mode, preview
from llava.serve.web.recording import Recorder

if TYPE_CHECKING:
    from llava.serve.web.backend import Backend
    from llava.serve.web.moderation import Moderation

LETTERS: Final = ("Model A", "Model B")
NUM_SHOWN: Final = 19
"""Components that `_shown` fills."""
Kept = Mapping[str, Any] | None
Values = list[Any]


@dataclass(frozen=True)
class PageOptions:
    """What the page offers."""

    model_list_mode: str = "reload"
    is_embedded: bool = False
    """Without title and terms, for a frame of another page."""
    is_logged: bool = False
    """Whether dialogues are logged, which people must be told."""
    concurrency: int = 16
    """Answers that the page asks for at the same time; more wait."""


class Events:
    """The page's side of every event. Of the event loop's thread."""

    def __init__(
        self,
        backend: Backend,
        options: PageOptions,
        *,
        folder: Path,
        recorder: Recorder,
        moderation: Moderation | None = None,
    ) -> None:
        """`folder`: for thumbnails. `recorder`: keeps votes, and dialogues where it is told to."""
        self.options = options
        self._backend = backend
        self._folder = folder
        self._recorder = recorder
        self._moderation = moderation
        self._stops: dict[str, asyncio.Event] = {}
        self._list = ModelList(backend.models, mode=options.model_list_mode)

    async def load(self, kept: Kept, request: gr.Request) -> Values:
        """Fill the model list and show the dialogue that the browser has."""
        names = await self._models()
        wanted = request.query_params.get("model")
        model = choose_model(names, wanted=wanted)
        other = next((name for name in names if name != model), model)
        try:
            panes = _panes_of(kept, [""])
        except LlavaError as error:
            # What an older page kept must not keep this one from opening.
            _warn(error)
            panes = [Pane("", "", Dialogue(), is_done=True)]
        return [
            gr.update(choices=names, value=model),
            gr.update(choices=names, value=other),
            *self._shown(panes[:1]),
        ]

    async def _models(self) -> list[str]:
        try:
            return await self._list.on_page_load()
        except LlavaError as error:
            _warn(error)
            return self._list.names

    async def send(
        self, request: gr.Request, said: Mapping[str, Any], kept: Kept, *rest: Any
    ) -> AsyncGenerator[Values, None]:
        """Ask what was typed, of one model or two."""
        try:
            choice = Choice.of(rest)
            text = said.get("text") or ""
            if self._moderation is not None and await asyncio.to_thread(self._moderation.is_flagged, text):
                raise UsageError(MESSAGE)
            urls = await asyncio.to_thread(read_uploads, said.get("files") or [])
            panes = [
                pane.dialogue.asked(text, urls, mode=choice.mode) for pane in _panes_of(kept, choice.models)
            ]
        except LlavaError as error:
            _warn(error)
            yield [gr.skip()] * NUM_SHOWN
            return
        async for shown in self._answer(panes, choice, request):
            yield shown

    async def again(self, request: gr.Request, kept: Kept, *rest: Any) -> AsyncGenerator[Values, None]:
        """Ask the last question again, with the picture mode of now."""
        async for shown in self._ask_anew(kept, rest, request, lambda it, mode: it.regenerated(mode=mode)):
            yield shown

    async def edit(
        self, event: gr.EditData, request: gr.Request, kept: Kept, *rest: Any
    ) -> AsyncGenerator[Values, None]:
        """Ask an earlier question in other words; what followed it is gone."""

        def edited(dialogue: Dialogue, mode: str) -> Dialogue:
            del mode
            place = event.index if isinstance(event.index, int) else event.index[0]
            return dialogue.edited(turn_at(dialogue, place), html.unescape(str(event.value)))

        async for shown in self._ask_anew(kept, rest, request, edited):
            yield shown

    async def _ask_anew(
        self,
        kept: Kept,
        rest: tuple[Any, ...],
        request: gr.Request,
        change: Callable[[Dialogue, Any], Dialogue],
    ) -> AsyncGenerator[Values, None]:
        try:
            choice = Choice.of(rest)
            dialogues = [change(pane.dialogue, choice.mode) for pane in _panes_of(kept, choice.models)]
        except LlavaError as error:
            _warn(error)
            yield [gr.skip()] * NUM_SHOWN
            return
        async for shown in self._answer(dialogues, choice, request):
            yield shown

    async def _answer(
        self, dialogues: list[Dialogue], choice: Choice, request: gr.Request
    ) -> AsyncGenerator[Values, None]:
        request_id, session, begin = new_request_id(), str(request.session_hash), time.time()
        models = choice.drawn()
        labels = LETTERS if choice.is_blind else models
        panes = [
            Pane(model, label, own) for model, label, own in zip(models, labels, dialogues, strict=False)
        ]
        stop = self._stops[session] = asyncio.Event()
        seen, prompt = await self._what_is_seen(panes[0], choice)
        round_ = {"models": models, "blind": choice.is_blind, "seed": choice.sampling.seed}
        yield self._shown(
            panes, is_running=True, box={"text": "", "files": []}, round_=round_, seen=seen, prompt=prompt
        )
        try:
            async for _ in ask(self._backend, panes, choice.sampling, stop=stop, request_id=request_id):
                yield self._shown(panes, is_running=True, is_kept=False)
        finally:
            self._stops.pop(session, None)
            try:
                await self._record(panes, begin, request)
            except LlavaError as error:
                _warn(error)  # the answer is there all the same
        yield self._shown(panes)

    async def _record(self, panes: list[Pane], begin: float, request: gr.Request) -> None:
        for pane in panes:
            if pane.text and not pane.error:
                template = await self._backend.template(pane.model)
                await asyncio.to_thread(self._recorder.answer, pane, template.name, begin, _address(request))

    async def _what_is_seen(self, pane: Pane, choice: Choice) -> tuple[Any, str]:
        """Return the preview of all pictures and the exact prompt; nothing where they cannot be made."""
        try:
            template = await self._backend.template(pane.model)
            turns = pane.dialogue.request(choice.sampling).turns
            urls, mode = pane.dialogue.pictures, choice.mode
            pictures = await asyncio.to_thread(self._previews, list(urls), pane.model, mode)
            return pictures, prompt_of(template, turns)
        except LlavaError:
            # The answer will say it, with its request id.
            return [], ""

    def _previews(self, sources: list[str], model: str, mode: Any) -> list[Any]:
        rules = self._backend.rules(model)
        pictures = pictures_of(sources, mode)
        seen = pictures if rules is None else [preview(image, rules) for image in pictures]
        # Files of ours: those that gradio writes for a gallery stay until the server ends.
        return [saved(image, self._folder) for image in seen]

    async def preview(self, said: Mapping[str, Any] | None, model: str, mode: str) -> Any:
        """Show what the model would see of the pictures that wait in the box."""
        files = (said or {}).get("files") or []
        if not files:
            return gr.skip()
        try:
            urls = await asyncio.to_thread(read_uploads, files)
            return await asyncio.to_thread(self._previews, urls, model, check_mode(mode))
        except LlavaError as error:
            _warn(error)
            return gr.skip()

    def stop(self, request: gr.Request) -> None:
        """End the answers of this browser tab; what there is stays."""
        stopping = self._stops.get(str(request.session_hash))
        if stopping is not None:
            stopping.set()

    def clear(self) -> Values:
        """Forget the dialogue."""
        return self._shown([Pane("", "", Dialogue(), is_done=True)], seen=[], prompt="")

    def compare(self, is_double: bool, kept: Kept) -> Values:
        """Show one dialogue or two."""
        del kept
        return (
            [gr.update(visible=is_double)] * 4
            + [gr.update(visible=not is_double)] * 3
            + [gr.update(visible=is_double)] * 4
        )

    def answer_vote(self, kind: str) -> Callable[..., Awaitable[Values]]:
        """Return the event of a button below an answer."""

        async def vote(kept: Kept, request: gr.Request) -> Values:
            (pane, *_) = _panes_of(kept, [""])
            model = pane.dialogue.turns[-1].model if pane.dialogue.turns else ""
            if model:
                template = await self._backend.template(model)
                await asyncio.to_thread(
                    self._recorder.answer_vote, kind, pane.dialogue, model, template.name, _address(request)
                )
            gr.Info("Thank you.")
            return [gr.update(interactive=False)] * 3

        return vote

    def pair_vote(self, kind: str) -> Callable[..., Awaitable[Values]]:
        """Return the event of a button below two answers: keeps the vote, and says who answered."""

        async def vote(kept: Kept, round_: Mapping[str, Any] | None) -> Values:
            if round_ is None:
                return [gr.skip()] * 3 + [gr.update(interactive=False)] * 4
            models = round_["models"]
            panes = [
                Pane(model, model, _named(pane.dialogue, model), is_done=True)
                for pane, model in zip(_panes_of(kept, models), models, strict=True)
            ]
            await asyncio.to_thread(self._recorder.pair_vote, kind, panes, round_)
            gr.Info(f"Thank you. Left was {models[0]}, right was {models[1]}.")
            chats = [
                gr.update(value=messages_of(pane.shown, self._folder), label=pane.label) for pane in panes
            ]
            return [*chats, _kept_of(panes)] + [gr.update(interactive=False)] * 4

        return vote

    def votes_table(self) -> Any:
        """Show how the votes stand."""
        headers, rows = self._recorder.table()
        return gr.update(headers=headers, value=rows)

    async def upload(self, path: str) -> Values:
        """Show the dialogue of a file."""
        try:
            dialogue = await asyncio.to_thread(lambda: from_file(Path(path).read_bytes()))
        except LlavaError as error:
            _warn(error)
            return [gr.skip()] * NUM_SHOWN
        return self._shown([Pane("", "", dialogue, is_done=True)])

    def _shown(
        self,
        panes: list[Pane],
        *,
        is_running: bool = False,
        is_kept: bool = True,
        box: Any = None,
        round_: Any = None,
        seen: Any = None,
        prompt: str | None = None,
    ) -> Values:
        """Return a value for every component that shows the dialogue, in the page's order."""
        chats = [
            gr.update(value=messages_of(pane.shown, self._folder), label=pane.label or "Dialogue")
            for pane in panes
        ]
        stages = [stages_line(pane.stages) for pane in panes]
        has_turns = bool(panes[0].dialogue.turns)
        is_good = (
            has_turns
            and not is_running
            and all(not pane.error and pane.shown.turns[-1].role == "assistant" for pane in panes)
        )
        return [
            *chats, *[[] for _ in range(2 - len(chats))],
            *stages, *["" for _ in range(2 - len(stages))],
            _kept_of(panes) if is_kept else gr.skip(),
            round_ if round_ is not None else gr.skip(),
            box if box is not None else gr.skip(),
            seen if seen is not None else gr.skip(),
            prompt if prompt is not None else gr.skip(),
            gr.update(interactive=is_running),
            gr.update(interactive=has_turns and not is_running),
            gr.update(interactive=has_turns and not is_running),
            *[gr.update(interactive=is_good)] * 7,
        ]  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What the page's controls say."""

    models: list[str]
    is_blind: bool
    mode: Any
    sampling: SamplingParams

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Choice:
        """Read the controls in the page's order; raises UsageError and ConfigError."""
        model, other, is_double, is_blind, mode, is_greedy, temperature, top_p, max_tokens, seed = values
        if not model:
            raise UsageError("no model answers", remedy="Wait for a worker, and load the page again.")
        sampling = SamplingParams(
            temperature=0.0 if is_greedy else float(temperature),
            top_p=1.0 if is_greedy else max(float(top_p or 0), SMALLEST_TOP_P),
            max_new_tokens=max(1, int(max_tokens)),
            seed=None if is_greedy else _seed_of(str(seed or "").strip()),
        )
        models = [model, other] if is_double else [model]
        return cls(models, bool(is_double and is_blind), check_mode(mode), sampling)

    def drawn(self) -> list[str]:
        """Return the models from left to right; by chance where names are hidden."""
        return random.sample(self.models, len(self.models)) if self.is_blind else list(self.models)


def _seed_of(text: str) -> int | None:
    if text and not text.isdecimal():
        raise ConfigError(f"seed is {text[:40]!r}", remedy="Give a whole number, or leave it empty.")
    return int(text) if text else None


def _panes_of(kept: Kept, models: list[str]) -> list[Pane]:
    """Return what the browser keeps, one pane a model; raises LlavaErrors for what no page of ours kept."""
    stored = (kept or {}).get("panes") or []
    dialogues = [from_json(value) for value in stored] or [Dialogue()]
    while len(dialogues) < len(models):
        dialogues.append(dialogues[0])
    return [Pane(model, model, own, is_done=True) for model, own in zip(models, dialogues, strict=False)]


def _kept_of(panes: list[Pane]) -> dict[str, Any]:
    return {"panes": [to_json(pane.shown if pane.is_done else pane.dialogue) for pane in panes]}


def _named(dialogue: Dialogue, model: str) -> Dialogue:
    """Say who gave the last answer."""
    last = dialogue.turns[-1]
    return Dialogue(dialogue.turns[:-1]).answered(last.text, model, is_error=last.is_error)


def _address(request: gr.Request) -> str:
    return str(request.client.host) if request.client else ""


def _warn(error: Exception) -> None:
    """Show an error beside the page, and log it."""
    request_id = new_request_id()
    known = as_llava_error(error, request_id)
    log_error(known, request_id)
    gr.Warning(error_line(known, request_id))
