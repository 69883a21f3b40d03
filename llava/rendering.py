"""Turns -> spans: a prompt in pieces that know who wrote them and whether they are trained.

First step of both flows: chat encodes the spans into a prompt, training also takes the loss mask from them,
so text, ids and mask cannot disagree. Rendering rules: `Conversation.get_prompt` of the original's
`llava/conversation.py` (both InternVL's and LLaVA's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.errors import PromptError

if TYPE_CHECKING:
    from llava.templates import ChatTemplate

Style = Literal["SINGLE", "TWO", "MPT", "PLAIN", "LLAMA_2", "CHATINTERN", "INTERNVL_ZH"]


class Span(NamedTuple):
    """A piece of a prompt."""

    text: str
    kind: Literal["control", "text", "image"]
    """control: written by the template, its special tokens become ids; text: content, never a control token;
    image: one picture."""
    is_trained: bool = False
    """Whether the loss covers it."""


class Picture:
    """Marks the place of one picture inside a turn; the picture itself travels beside the turns."""

    def __repr__(self) -> str:
        return "PICTURE"


PICTURE: Final = Picture()

Content = tuple[str | Picture, ...]


class Turn(NamedTuple):
    """What one side says: text and places of pictures. Empty content: a turn still to be filled."""

    role: Literal["user", "assistant"]
    content: Content


class Message(NamedTuple):
    """A turn as the rendering rules see it: the role as it is written, which need not be the template's."""

    role: str
    content: Content
    is_answer: bool

    @property
    def is_open(self) -> bool:
        """Whether the turn waits to be filled: no picture and no text."""
        return not any(isinstance(part, Picture) or part for part in self.content)


def content_of(text: str) -> Content:
    """Split `text` at each `<image>` into text and pictures."""
    first, *rest = text.split(DEFAULT_IMAGE_TOKEN)
    parts: list[str | Picture] = [first]
    for chunk in rest:
        parts += [PICTURE, chunk]
    return tuple(part for part in parts if isinstance(part, Picture) or part)


def render_messages(template: ChatTemplate, messages: Sequence[Message], *, im_start_end: bool) -> list[Span]:
    """Render system text and messages; raises PromptError where a style cannot hold the messages."""
    writer = _Writer(im_start_end)
    _RENDERERS[template.style](template, messages, writer)
    return writer.spans


def render_content(content: Content, *, im_start_end: bool, is_trained: bool) -> list[Span]:
    """Render what one turn holds, without its role."""
    writer = _Writer(im_start_end)
    writer.content(content, is_trained=is_trained)
    return writer.spans


class _Writer:
    """Collects spans; pieces without text are left out."""

    def __init__(self, im_start_end: bool) -> None:
        self.spans: list[Span] = []
        self.im_start_end = im_start_end

    def control(self, text: str, *, is_trained: bool = False) -> None:
        if text:
            self.spans.append(Span(text, "control", is_trained))

    def content(self, parts: Content, *, is_trained: bool = False) -> None:
        for part in parts:
            if not isinstance(part, Picture):
                if part:
                    self.spans.append(Span(part, "text", is_trained))
            elif self.im_start_end:
                self.control(DEFAULT_IM_START_TOKEN)
                self.spans.append(Span(DEFAULT_IMAGE_TOKEN, "image"))
                self.control(DEFAULT_IM_END_TOKEN)
            else:
                self.spans.append(Span(DEFAULT_IMAGE_TOKEN, "image"))


def _render_headed(template: ChatTemplate, messages: Sequence[Message], writer: _Writer) -> None:
    """SINGLE, TWO and INTERNVL_ZH: `role: text` and a separator, one for all or one for each side."""
    writer.control(template.system + template.sep)
    for message, end in _with_ends(template, messages):
        if message.is_open:
            writer.control(f"{message.role}:")
            continue
        # The space before an answer is trained: it merges with the answer's first word into one token.
        writer.control(f"{message.role}:")
        writer.control(" ", is_trained=message.is_answer)
        writer.content(message.content, is_trained=message.is_answer)
        writer.control(end, is_trained=message.is_answer)


def _render_mpt(template: ChatTemplate, messages: Sequence[Message], writer: _Writer) -> None:
    """MPT (ChatML): the role is the whole header, its newline included."""
    writer.control(template.system + template.sep)
    for message in messages:
        writer.control(message.role)
        if not message.is_open:
            writer.content(message.content, is_trained=message.is_answer)
            writer.control(template.sep, is_trained=message.is_answer)


def _render_llama_2(template: ChatTemplate, messages: Sequence[Message], writer: _Writer) -> None:
    """LLAMA_2: questions in [INST], the system text inside the first; the tokenizer adds the first `<s>`."""
    if messages and (messages[0].is_open or messages[0].role != template.roles[0]):
        raise PromptError(
            f"template {template.name} holds the system text in the first question, and there is none",
            remedy="Begin the conversation with a question.",
        )
    for index, message in enumerate(messages):
        if message.is_open:
            continue
        if index % 2 == 1:
            writer.control(" ", is_trained=True)
            writer.content(message.content, is_trained=True)
            writer.control(f" {template.second_sep}", is_trained=True)
            continue
        system = template.system if index == 0 else ""
        has_system = index == 0 and bool(system or template.wraps_empty_system)
        header = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if has_system else ""
        writer.control(f"{template.sep if index else ''}[INST] {header}")
        writer.content(message.content)
        writer.control(" [/INST]")


def _render_plain(template: ChatTemplate, messages: Sequence[Message], writer: _Writer) -> None:
    """PLAIN: no roles. The original has no separator for a second turn and fails; ours uses the first's."""
    writer.control(template.system)
    for message, end in _with_ends(template, messages):
        if not message.is_open:
            writer.content(message.content, is_trained=message.is_answer)
            writer.control(end, is_trained=message.is_answer)


def _render_chatintern(template: ChatTemplate, messages: Sequence[Message], writer: _Writer) -> None:
    """CHATINTERN (InternLM 1): `<s>` before every round, a newline after every end token."""
    writer.control(template.system)
    for index, (message, end) in enumerate(_with_ends(template, messages)):
        writer.control(("" if index % 2 else "<s>") + f"{message.role}:")
        if not message.is_open:
            writer.content(message.content, is_trained=message.is_answer)
            writer.control(end, is_trained=message.is_answer)
            writer.control("\n")


def _with_ends(template: ChatTemplate, messages: Sequence[Message]) -> Iterator[tuple[Message, str]]:
    """Pair each message with its separator, which goes by position and not by role, as in the original."""
    ends = (template.sep, template.second_sep)
    return ((message, ends[index % 2]) for index, message in enumerate(messages))


_RENDERERS: dict[Style, Callable[[ChatTemplate, Sequence[Message], _Writer], None]] = {
    "SINGLE": _render_headed,
    "TWO": _render_headed,
    "INTERNVL_ZH": _render_headed,
    "MPT": _render_mpt,
    "LLAMA_2": _render_llama_2,
    "PLAIN": _render_plain,
    "CHATINTERN": _render_chatintern,
}
