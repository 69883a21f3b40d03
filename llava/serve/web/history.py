"""A dialogue as the browser keeps it, and its ways out: to a request, to a file, to OpenAI's messages.

The page keeps no history of its own: every event brings the dialogue and takes a new one back, so everything
here is a pure function. An answer that failed stays visible and is marked; no model ever reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from llava.conversation import encode_base64
from llava.engine.request import Request, SamplingParams
from llava.errors import UsageError
from llava.processing.images import ImageLimits, load_image
from llava.serve.web.pictures import PictureMode, prepare
from llava.templates import PICTURE, Picture, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["user", "assistant"]
_BETWEEN: Final = "\n\n"
"""Between a question without an answer and the next one, as between messages of one side in the API."""
LIMITS: Final = ImageLimits(max_bytes=32 << 20, max_pixels=40_000_000)
"""Of each picture; those of the API."""


@dataclass(frozen=True, slots=True)
class WebTurn:
    """A question or an answer as it is shown."""

    role: Role
    text: str
    pictures: tuple[str, ...] = ()
    """Data URLs, of questions only; a model gets them in front of the text."""
    mode: PictureMode = "Default"
    """What is done to the pictures before a model gets them."""
    model: str = ""
    """Who answered; empty for questions."""
    is_error: bool = False
    """Whether the text says why there is no answer."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions and answers in their order."""

    turns: tuple[WebTurn, ...] = ()

    @property
    def is_waiting(self) -> bool:
        """Whether the last turn is a question."""
        return bool(self.turns) and self.turns[-1].role == "user"

    @property
    def pictures(self) -> tuple[str, ...]:
        """All pictures, in their order, as data URLs."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    def asked(self, text: str, pictures: Sequence[str] = (), *, mode: PictureMode = "Default") -> Dialogue:
        """Return the dialogue with a question more; raises UsageError where there is nothing in it."""
        if not text.strip() and not pictures:
            raise UsageError("there is neither text nor a picture", remedy="Write a question.")
        return Dialogue((*self.turns, WebTurn("user", text, tuple(pictures), mode)))

    def answered(self, text: str, model: str, *, is_error: bool = False) -> Dialogue:
        """Return the dialogue with an answer to its last question, or the reason why there is none."""
        if not self.is_waiting:
            raise UsageError("there is no question to answer", remedy="Ask something first.")
        return Dialogue((*self.turns, WebTurn("assistant", text, model=model, is_error=is_error)))

    def regenerated(self, *, mode: PictureMode | None = None) -> Dialogue:
        """Return the dialogue up to its last question, whose pictures may get another mode."""
        turns = self.turns[:-1] if self.turns and not self.is_waiting else self.turns
        if not turns:
            raise UsageError("there is no question to answer again", remedy="Ask something first.")
        last = turns[-1] if mode is None else replace(turns[-1], mode=mode)
        return Dialogue((*turns[:-1], last))

    def edited(self, index: int, text: str) -> Dialogue:
        """Return the dialogue up to turn `index`, a question, with another text; what followed is gone."""
        if not 0 <= index < len(self.turns) or self.turns[index].role != "user":
            raise UsageError(f"turn {index + 1} is no question", remedy="Edit a question of yours.")
        turn = self.turns[index]
        return Dialogue(self.turns[:index]).asked(text, turn.pictures, mode=turn.mode)

    def sent(self) -> list[tuple[Role, list[WebTurn]]]:
        """Return what a model reads: sides in turn, without errors and empty answers.

        A question that got none is read together with the next one, so that its pictures stay.
        """
        sides: list[tuple[Role, list[WebTurn]]] = []
        for turn in self.turns:
            if turn.is_error or (turn.role == "assistant" and not turn.text):
                continue
            if sides and sides[-1][0] == turn.role:
                sides[-1][1].append(turn)
            else:
                sides.append((turn.role, [turn]))
        return sides

    def request(self, sampling: SamplingParams | None = None) -> Request:
        """Load the pictures and return the request for an engine; the last turn must be a question.

        Raises UsageError, ImageError, ImageLimitError.
        """
        if not self.is_waiting:
            raise UsageError("the dialogue does not end with a question", remedy="Ask something.")
        return Request(
            turns=[Turn(role, tuple(_content(turns))) for role, turns in self.sent()],
            images=self._images(),
            sampling=sampling or SamplingParams(),
        )

    def worker_pictures(self) -> tuple[str, ...]:
        """Load the pictures and return them as the original's workers take them; raises as `request`."""
        return tuple(encode_base64(image, "PNG") for image in self._images())

    def _images(self) -> list[Image]:
        return [
            prepare(load_image(url, limits=LIMITS, allow_path=False), turn.mode)
            for _, turns in self.sent()
            for turn in turns
            for url in turn.pictures
        ]

    def messages(self) -> list[dict[str, Any]]:
        """Return OpenAI's chat messages of what a model reads, pictures as they were given."""
        return [_message(role, turns) for role, turns in self.sent()]


def _content(turns: Sequence[WebTurn]) -> Iterator[str | Picture]:
    """Yield pictures first, each with a line break, then the text, turn by turn."""
    for number, turn in enumerate(turns):
        if number:
            yield _BETWEEN
        parts: list[str | Picture] = [PICTURE, "\n"] * len(turn.pictures)
        yield from [*parts, turn.text] if turn.text else parts[:-1]


def _message(role: Role, turns: Sequence[WebTurn]) -> dict[str, Any]:
    text = _BETWEEN.join(turn.text for turn in turns if turn.text)
    urls = [url for turn in turns for url in turn.pictures]
    if not urls:
        return {"role": role, "content": text}
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}] if text else parts}
