"""An engine without a model: it tells what it was asked, in pieces, and can be interrupted at any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from llava.engine.protocol import OnAnswer
from llava.engine.request import Answer, FinishReason, Request, Timing
from llava.errors import ContextLengthError
from llava.templates import ChatTemplate, Turn, get_template

TOO_LONG = "a very long question"


def text_of(turn: Turn) -> str:
    """Return the words of a turn, with # for each picture."""
    return "".join(item if isinstance(item, str) else "#" for item in turn.content)


def echo(request: Request) -> str:
    """Answer with everything that was said, and the sizes of the pictures."""
    said = " / ".join(text_of(turn).replace("\n", " ") for turn in request.turns)
    sizes = ",".join(str(image.size[0]) for image in request.images if isinstance(image, Image.Image))
    return f"heard: {said} pictures: [{sizes}]"


class ScriptedStream:
    """A stream that gives its pieces one by one; the piece None is Ctrl-C."""

    def __init__(self, pieces: Sequence[str | None], delay_s: float) -> None:
        self._pieces = pieces
        self._delay_s = delay_s
        self._given: list[str] = []
        self._reason: FinishReason = "cancelled"

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if piece is None:
                raise KeyboardInterrupt
            time.sleep(self._delay_s)
            self._given.append(piece)
            yield piece
        self._reason = "stop"

    def cancel(self) -> None:
        self._reason = "cancelled"

    @property
    def answer(self) -> Answer:
        text = "".join(self._given).strip()
        return Answer(text, self._reason, 7, len(self._given), Timing(first_token_s=0.5, total_s=1.5))


class ScriptedEngine:
    """Has the face of ChatEngine that a chat needs; remembers its requests."""

    def __init__(
        self,
        pieces: Callable[[Request], Sequence[str | None]] | None = None,
        *,
        template: str = "vicuna_v1",
        delay_s: float = 0,
    ) -> None:
        self._pieces = pieces or (lambda request: [" ", *echo(request)])
        self._template = get_template(template)
        self._delay_s = delay_s
        self.requests: list[Request] = []
        self.batch_sizes: list[int] = []

    @property
    def template(self) -> ChatTemplate:
        return self._template

    def submit(self, request: Request) -> ScriptedStream:
        self.requests.append(request)
        if TOO_LONG in text_of(request.turns[-1]):
            raise ContextLengthError(
                "the prompt has 9 tokens and the model's context 8", remedy="Shorten it."
            )
        return ScriptedStream(self._pieces(request), self._delay_s)

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = 8, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        assert len(requests) <= batch_size
        self.batch_sizes.append(len(requests))
        streams = [self.submit(request) for request in requests]
        for stream in streams:
            list(stream)
        answers = [stream.answer for stream in streams]
        for index, answer in enumerate(answers):
            if on_answer is not None:
                on_answer(index, answer)
        return answers


def save_picture(path: Path, *, width: int = 8, height: int = 6) -> str:
    """Write a picture and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 30, 30)).save(path)
    return str(path)
