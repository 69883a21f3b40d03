"""`POST /v1/chat/completions`: one request from its body to the last byte of its answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse, Response

from llava.serve.http.errors import as_llava_error, error_fields, log_error
from llava.serve.http.limits import json_body
from llava.serve.http.request_id import request_id_of
from llava.serve.metrics import Metrics, RequestClock
from llava.serve.openai.body import ChatBody, check_format, read_body
from llava.serve.openai.completions import Completion, Trimmer
from llava.serve.openai.messages import PromptLimits, read_messages
from llava.serve.openai.pictures import PictureMemory
from llava.serve.request_queue import ClientGoneError, Event

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from llava.engine.request import Answer
    from llava.serve.served import ServedModels

CLIENT_GONE_STATUS: Final = 499
"""nginx's number for a client that left; nobody gets to see it."""
_STREAM_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy in front passes every piece on at once
}


@dataclass
class _Call:
    """A request whose first event is there."""

    body: ChatBody
    completion: Completion
    clock: RequestClock
    events: AsyncIterator[Event]
    resources: AsyncExitStack
    """Ends the answers when it is closed."""
    answers: dict[int, Answer] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Note what an event says about times and answers."""
        self.clock.note_event()
        if event.answer is not None:
            self.answers[event.index] = event.answer

    def in_order(self) -> list[Answer]:
        """Return the complete answers."""
        return [self.answers[index] for index in range(self.body.num_choices)]


async def complete(
    request: Request,
    models: ServedModels,
    limits: PromptLimits,
    memory: PictureMemory,
    metrics: Metrics,
) -> Response:
    """Answer a chat request; raises LlavaErrors as long as no byte of an answer was sent."""
    body = read_body(json_body(request))
    model = models.get(body.model)
    sampling = body.sampling()
    check_format(sampling, model.queue.engine)
    dialogue = read_messages(body.messages, limits, memory)
    clock = metrics.begin(model.name)
    async with AsyncExitStack() as resources:
        resources.callback(dialogue.pictures.release)
        try:
            with clock:
                events = await resources.enter_async_context(
                    model.queue.events(
                        lambda: dialogue.request(sampling),
                        num_choices=body.num_choices,
                        wants_pieces=bool(body.stream),
                        until_gone=lambda: _until_gone(request.receive),
                    )
                )
                first = await anext(events)
                completion = Completion(request_id_of(request.scope), model.name)
                call = _Call(body, completion, clock, events, resources)
                call.take(first)
                if body.stream:
                    call.resources = resources.pop_all()
                    return _EventStream(call, first)
                async for event in events:
                    call.take(event)
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE_STATUS)
        clock.end(call.in_order())
        return JSONResponse(completion.whole(call.in_order()), headers={"Cache-Control": "no-store"})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    """A completion as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, call: _Call, first: Event) -> None:
        super().__init__(headers=_STREAM_HEADERS)
        del self.headers["content-length"]
        self._call = call
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send every event as it comes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with self._call.resources:
            try:
                with self._call.clock:
                    async for data in self._data():
                        await send({"type": "http.response.body", "body": _sse(data), "more_body": True})
                self._call.clock.end(self._call.in_order())
                last = b"data: [DONE]\n\n"
            except ClientGoneError:
                return
            except Exception as error:
                # The status has been sent: what follows can only be said in the stream.
                name = request_id_of(scope)
                known = as_llava_error(error, name)
                log_error(known, name)
                last = _sse({"error": error_fields(known, name)})
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _data(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks."""
        call, completion = self._call, self._call.completion
        trimmers = [Trimmer() for _ in range(call.body.num_choices)]
        for index in range(call.body.num_choices):
            yield completion.opening(index)
        async for event in self._events():
            if event.piece is not None:
                shown = trimmers[event.index].push(event.piece)
                if shown:
                    yield completion.piece(event.index, shown)
            elif event.answer is not None:
                yield completion.ending(event.index, event.answer)
        if call.body.includes_usage:
            yield completion.usage(call.in_order())

    async def _events(self) -> AsyncIterator[Event]:
        yield self._first
        async for event in self._call.events:
            self._call.take(event)
            yield event


def _sse(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
