"""Asks one model, or two side by side, and tells what to show meanwhile. Nothing here knows gradio.

Each pane's answer grows on its own; `ask` yields all panes whenever one changed, not more often than eyes
follow. An error ends its own pane. Ending the reading, or setting `stop`, ends what still runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llava.errors import LlavaError
from llava.serve.http.errors import as_llava_error, error_fields, log_error

if TYPE_CHECKING:
    from llava.engine.request import SamplingParams
    from llava.serve.web.backend import Backend, Stages
    from llava.serve.web.history import Dialogue

_FRAME_S: Final = 0.05
CURSOR: Final = "▌"


@dataclass
class Pane:
    """One model's side of the page, while it answers and afterwards."""

    model: str
    label: str
    """What the page calls the model: its name, or a letter while names are hidden."""
    dialogue: Dialogue
    text: str = ""
    stages: Stages | None = None
    error: str = ""
    is_done: bool = False

    @property
    def shown(self) -> Dialogue:
        """The dialogue with as much of the answer as there is."""
        if not self.dialogue.is_waiting:
            return self.dialogue
        if self.error:
            text = f"{self.text}\n\n{self.error}" if self.text else self.error
            return self.dialogue.answered(text, self.label, is_error=True)
        return self.dialogue.answered(self.text + ("" if self.is_done else CURSOR), self.label)


async def ask(
    backend: Backend,
    panes: Sequence[Pane],
    sampling: SamplingParams,
    *,
    stop: asyncio.Event,
    request_id: str,
) -> AsyncGenerator[None, None]:
    """Fill the panes' answers; yields whenever there is something new to show."""
    changed = asyncio.Event()
    tasks = [
        asyncio.ensure_future(_fill(backend, pane, sampling, changed=changed, request_id=request_id))
        for pane in panes
    ]
    stopping = asyncio.ensure_future(stop.wait())
    try:
        yield
        while not all(task.done() for task in tasks) and not stop.is_set():
            waiting = asyncio.ensure_future(changed.wait())
            await asyncio.wait({*tasks, waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            changed.clear()
            yield
            await asyncio.wait({stopping}, timeout=_FRAME_S)
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
        for pane in panes:
            pane.is_done = True


async def _fill(
    backend: Backend, pane: Pane, sampling: SamplingParams, *, changed: asyncio.Event, request_id: str
) -> None:
    try:
        stream = backend.stream(pane.model, pane.dialogue, sampling, request_id=request_id)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                pane.text += piece.text
                pane.stages = piece.stages or pane.stages
                changed.set()
    except Exception as error:
        # Whatever it is, the page's user is told as a client of the API is, and the log has the rest.
        known = as_llava_error(error, request_id)
        log_error(known, request_id)
        pane.error = error_line(known, request_id)
    finally:
        pane.is_done = True
        changed.set()


def error_line(error: LlavaError, request_id: str) -> str:
    """Return what the page shows of an error: code, cause, remedy, page and request, nothing private."""
    told = error_fields(error, request_id)
    return (
        f"error[{told['code']}]: {told['message']}. {told['remedy']} ({told['docs']}, request {request_id})"
    )


def stages_line(stages: Stages | None) -> str:
    """Return where the time of an answer went, in one line; "" where nobody says."""
    if stages is None:
        return ""
    parts = [
        f"queue {stages.timing.queued_s:.2f} s",
        f"picture {stages.timing.image_s:.2f} s",
        f"prompt {stages.prefill_s:.2f} s ({stages.num_prompt_tokens} tokens"
        + (f", {stages.num_cached_tokens} remembered)" if stages.num_cached_tokens else ")"),
        f"answer {stages.num_new_tokens} tokens"
        + (f" at {stages.tokens_per_second:.0f} a second" if stages.tokens_per_second else ""),
    ]
    return " · ".join(parts)
