"""`Conversation` and `conv_templates`: the face of the original's `llava/conversation.py` over our templates.

For code written for the original; our own flows take a `ChatTemplate` and turns. Messages are
`[role, text | None | (text, PIL image, mode)]`. Where InternVL's and LLaVA's files differ, both are here: the
templates of both, InternVL's default, and `wraps_empty_system` for the one rendering rule that differs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, get_args

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import PromptError
from llava.rendering import Message, Picture, Style, render_messages
from llava.templates import TEMPLATES, ChatTemplate

if TYPE_CHECKING:
    from PIL.Image import Image

_DEFAULT_BACKGROUND = (122, 116, 104)
"""CLIP's mean colour, around a padded picture."""
_RESIZED_EDGE = 336
_THUMBNAIL_MAX, _THUMBNAIL_MIN = 800, 400


class SeparatorStyle(Enum):
    """Rendering rules, by the original's names; `llava.rendering` says what each does."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    CHATINTERN = auto()
    INTERNVL_ZH = auto()


_STYLES: dict[SeparatorStyle, Style] = {SeparatorStyle[style]: style for style in get_args(Style)}


@dataclass
class Conversation:
    """A conversation in progress, with the template it is written in."""

    system: str
    roles: tuple[str, str] | list[str]
    messages: Any
    """[role, message] each; message: text, None for a turn to be filled, or (text, PIL image, mode)."""
    offset: int
    """Number of leading example messages that are not shown."""
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    stop_str: str | None = None
    stop_token_ids: list[int] | None = None
    skip_next: bool = False
    wraps_empty_system: bool = True
    """LLAMA_2 only: write the `<<SYS>>` block around an empty system text (InternVL does, LLaVA does not)."""
    template_name: str = field(default="", repr=False, compare=False)
    """Name of the template it was made from; only shown in errors."""

    def get_prompt(self) -> str:
        """Render the messages; raises PromptError where the template cannot hold them."""
        template = ChatTemplate(
            name=self.template_name or self.sep_style.name,
            system=self.system,
            roles=(self.roles[0], self.roles[1]),
            style=_STYLES[self.sep_style],
            sep=self.sep,
            sep2=self.sep2,
            version=self.version,
            wraps_empty_system=self.wraps_empty_system,
        )
        messages = [
            Message(role, (text,) if text else (), role == self.roles[1])
            for role, text in self._texts(has_tags=template.has_image_tags)
        ]
        return "".join(span.text for span in render_messages(template, messages, im_start_end=False))

    def _texts(self, *, has_tags: bool) -> list[tuple[str, str]]:
        """Return role and text of each message; a picture in the first one moves to its front."""
        texts = [(role, _text(message) or "") for role, message in self.messages]
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return texts
        role, text = texts[0]
        text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if not has_tags:
            return [(role, f"{DEFAULT_IMAGE_TOKEN}\n{text}"), *texts[1:]]
        picture = (self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>")
        return [picture, (self.roles[1], "Received."), (role, text), *texts[1:]]

    def append_message(self, role: str, message: str | tuple[str, Image, str] | None) -> None:
        """Add a message; None leaves the turn to be filled."""
        self.messages.append([role, message])

    def get_images(self, return_pil: bool = False, return_org: bool = False) -> list[Image] | list[str]:
        """Return the pictures of the shown questions, as sent to a worker: base64 PNG, or PIL images.

        return_org: as they were given, without the mode's padding or resizing. Raises PromptError for a mode
        other than Default, Crop, Pad and Resize.
        """
        images = [
            image if return_org else process_picture(image, mode) for _, image, mode in self._pictures()
        ]
        return images if return_pil else [encode_base64(image, "PNG") for image in images]

    def _pictures(self) -> Iterator[tuple[str, Image, str]]:
        for _, message in self.messages[self.offset :: 2]:
            if isinstance(message, tuple):
                yield message

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Return [question, answer] pairs for a Gradio chat; a picture is a thumbnail inside the question."""
        rounds: list[list[str | None]] = []
        for index, (_, message) in enumerate(self.messages[self.offset :]):
            if index % 2:
                rounds[-1][1] = _text(message)
            elif isinstance(message, tuple):
                text, image, _ = message
                source = f"data:image/jpeg;base64,{encode_base64(_thumbnail(image), 'JPEG')}"
                tag = f'<img src="{source}" alt="user upload image" />'
                rounds.append([tag + text.replace(DEFAULT_IMAGE_TOKEN, "").strip(), None])
            else:
                rounds.append([message, None])
        return rounds

    def copy(self) -> Conversation:
        """Return a conversation with its own list of messages."""
        return Conversation(
            system=self.system,
            roles=self.roles,
            messages=[[role, message] for role, message in self.messages],
            offset=self.offset,
            sep_style=self.sep_style,
            sep=self.sep,
            sep2=self.sep2,
            version=self.version,
            stop_str=self.stop_str,
            stop_token_ids=self.stop_token_ids,
            wraps_empty_system=self.wraps_empty_system,
            template_name=self.template_name,
        )

    def dict(self) -> dict[str, Any]:
        """Return the conversation as JSON can hold it: pictures are left out, their text stays."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [[role, _text(message)] for role, message in self.messages],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


def _text(message: str | tuple[str, Image, str] | None) -> str | None:
    """Return the text of a message with or without a picture."""
    return message[0] if isinstance(message, tuple) else message


def process_picture(image: Image, mode: str) -> Image:
    """Apply the web page's picture mode; raises PromptError for one that is not known."""
    from PIL import ImageOps

    if mode in ("Default", "Crop"):
        return image
    if mode == "Resize":
        return image.resize((_RESIZED_EDGE, _RESIZED_EDGE))
    if mode != "Pad":
        raise PromptError(f"picture mode {mode!r} is not known", remedy="Use Default, Crop, Pad or Resize.")
    side = max(image.size)
    left, top = ((side - edge) // 2 for edge in image.size)
    border = (left, top, side - image.width - left, side - image.height - top)
    return ImageOps.expand(image.convert("RGB"), border, fill=_DEFAULT_BACKGROUND)


def _thumbnail(image: Image) -> Image:
    """Resize for display: at most 800 pixels long and 400 short, never enlarged on the short edge."""
    ratio = max(image.size) / min(image.size)
    short = max(1, int(min(_THUMBNAIL_MAX / ratio, _THUMBNAIL_MIN, min(image.size))))
    long = int(short * ratio)
    size = (short, long) if image.height > image.width else (long, short)
    return image.convert("RGB").resize(size)


def encode_base64(image: Image, image_format: str) -> str:
    """Return the file that PIL writes of a picture, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()


def _conversation(template: ChatTemplate) -> Conversation:
    """Make the conversation that the original keeps under a template's name."""
    # A tuple: whoever appends without a copy() first must fail, and not change the template for all.
    examples = tuple(
        (
            template.roles[turn.role == "assistant"],
            "".join(part for part in turn.content if not isinstance(part, Picture)),
        )
        for turn in template.examples
    )
    return Conversation(
        system=template.system,
        roles=template.roles,
        messages=examples,
        offset=len(examples),
        sep_style=SeparatorStyle[template.style],
        sep=template.sep,
        sep2=template.sep2,
        version=template.version,
        stop_str=template.stop_str,
        stop_token_ids=list(template.stop_token_ids) or None,
        wraps_empty_system=template.wraps_empty_system,
        template_name=template.name,
    )


def _conversations() -> dict[str, Conversation]:
    """Return one conversation per template; aliases share it, as in the original."""
    made = {template.name: _conversation(template) for template in TEMPLATES.values()}
    return {name: made[template.name] for name, template in TEMPLATES.items()}


conv_templates = _conversations()
"""Every template's conversation by each of its names; take a `copy()` before you add messages."""
default_conversation = conv_templates["v0"]
"""InternVL's default. Nothing in this project reads it: templates are passed as arguments."""
