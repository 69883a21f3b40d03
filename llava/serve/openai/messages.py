"""Messages -> turns and pictures. What a client wrote stays text: no word of it becomes a control token.

Where pictures stand is as the models were trained (LLaVA's `preprocess_multimodal`): in front of a message's
text, each with a line break after it. Pictures amid the text stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llava.engine.request import Request, SamplingParams
from llava.errors import ImageLimitError, RequestError, TooLargeError
from llava.serve.openai.body import ChatMessage, ImagePart, TextPart
from llava.serve.openai.pictures import PictureLimits, PictureMemory, RequestPictures
from llava.templates import PICTURE, Picture, Turn

Item = str | Picture
_URL_SCHEMES = ("http://", "https://")
_BETWEEN = "\n\n"
"""Between messages of the same side, which become one turn, and between system text and question."""


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """What the dialogue of one request may hold."""

    pictures: PictureLimits = field(default_factory=PictureLimits)
    max_characters: int = 500_000
    """Of all texts together: what no context holds is not even tokenised."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue that was checked, and whose pictures are still to be loaded."""

    turns: tuple[Turn, ...]
    pictures: RequestPictures

    def request(self, sampling: SamplingParams) -> Request:
        """Load the pictures, which belongs into a thread.

        Raises ImageError, ImageLimitError, ServerBusyError.
        """
        return Request(turns=self.turns, images=self.pictures.load(), sampling=sampling)


def read_messages(messages: Sequence[ChatMessage], limits: PromptLimits, memory: PictureMemory) -> Dialogue:
    """Check the messages of a body, which is quick; raises RequestError, ImageLimitError, TooLargeError."""
    urls = [part.image_url.url for part in _parts(messages) if not isinstance(part, TextPart)]
    for url in urls:
        _check_url(url, limits.pictures)
    if len(urls) > limits.pictures.max_images:
        raise ImageLimitError(
            f"{len(urls)} pictures in one request", remedy=f"Send at most {limits.pictures.max_images}."
        )
    turns = _turns(messages)
    num_characters = sum(len(item) for turn in turns for item in turn.content if isinstance(item, str))
    if num_characters > limits.max_characters:
        raise TooLargeError(
            f"the messages have {num_characters} characters, over the limit of {limits.max_characters}",
            remedy="Shorten the conversation.",
        )
    return Dialogue(turns, RequestPictures(memory, urls))


def _parts(messages: Sequence[ChatMessage]) -> list[TextPart | ImagePart]:
    return [part for message in messages if isinstance(message.content, list) for part in message.content]


def _check_url(url: str, limits: PictureLimits) -> None:
    start = url[:8].lower()
    if start.startswith("data:"):
        return
    if not start.startswith(_URL_SCHEMES):
        raise RequestError(
            "image_url is neither a data URI nor an http(s) address",
            remedy="Send the picture as data:image/png;base64,...",
        )
    if not limits.allow_urls:
        raise RequestError(
            "this server does not fetch pictures from addresses",
            remedy="Send the picture as data:image/png;base64,..., or start the server with --allow-urls.",
        )


def _turns(messages: Sequence[ChatMessage]) -> tuple[Turn, ...]:
    """Return the dialogue with one turn for each change of sides; system text opens the first question."""
    system: list[str] = []
    turns: list[tuple[Literal["user", "assistant"], list[Item]]] = []
    for message in messages:
        if message.tool_calls:
            raise RequestError("tool calls are not known here", remedy="Leave tool_calls out.")
        items = _items(message)
        if message.role in ("system", "developer"):
            system.append(_text_only(items))
            continue
        if not items:
            continue  # an answer that was stopped before its first word
        role = message.role
        assert role in ("user", "assistant")
        if turns and turns[-1][0] == role:
            turns[-1][1].extend([_BETWEEN, *items])
        else:
            turns.append((role, items))
    if not turns or turns[-1][0] != "user":
        raise RequestError(
            "the last message is empty or not the user's", remedy="End with a message of role user."
        )
    if any(system):
        _open_with(_BETWEEN.join(text for text in system if text), turns)
    return tuple(Turn(role, tuple(items)) for role, items in turns)


def _items(message: ChatMessage) -> list[Item]:
    """Return text and pictures of a message in their order."""
    if not isinstance(message.content, list):
        return [message.content] if message.content else []
    texts = [part for part in message.content if isinstance(part, TextPart)]
    pictures = [part for part in message.content if not isinstance(part, TextPart)]
    is_text_first = message.content == [*texts, *pictures]
    items: list[Item] = []
    for part in [*pictures, *texts] if is_text_first else message.content:
        if isinstance(part, TextPart):
            items.append(part.text)
            continue
        if items and isinstance(items[-1], str) and not items[-1][-1:].isspace():
            items.append("\n")
        items += [PICTURE, "\n"]
    if texts and items[-1] == "\n":
        del items[-1]  # a picture that ends the message
    return [item for item in items if item != ""]


def _text_only(items: Sequence[Item]) -> str:
    if any(isinstance(item, Picture) for item in items):
        raise RequestError("a system message holds a picture", remedy="Put it into a user's message.")
    return "".join(item for item in items if isinstance(item, str))


def _open_with(system: str, turns: list[tuple[Literal["user", "assistant"], list[Item]]]) -> None:
    """Put the system text in front of the first question's text, behind pictures that open it.

    The templates' own system text is part of what the models were trained with, and stays.
    """
    items = next(items for role, items in turns if role == "user")
    place = 0
    while place < len(items) and (isinstance(items[place], Picture) or items[place] == "\n"):
        place += 1
    items.insert(place, system + (_BETWEEN if place < len(items) else ""))
