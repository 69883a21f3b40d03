"""Between dialogues and what the browser shows: chat messages, thumbnails, uploads, the page's looks.

Answers are shown as the plain text they are: no HTML, no links, no pictures out of a model's words.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from llava.demo import example_images
from llava.errors import ImageLimitError
from llava.processing.formats import picture_format
from llava.processing.images import load_image
from llava.serve.web.history import LIMITS, Dialogue
from llava.serve.web.pictures import PictureMode, prepare

KEPT_S: Final = 3600
"""How long pictures of the page lie on the server."""
MAX_UPLOADS: Final = 8
"""Pictures of one question."""
_MAX_KEPT_BYTES: Final = 1 << 20
"""A larger picture is kept in the browser as the smaller one that is sent to a model anyway."""
_THUMBNAIL: Final = (320, 320)
_TAG = re.compile(r"<(?=[a-zA-Z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;?)")

Message = dict[str, Any]


def messages_of(dialogue: Dialogue, folder: Path) -> list[Message]:
    """Return the dialogue as gr.Chatbot takes it; thumbnails are written to `folder`."""
    messages: list[Message] = []
    for turn in dialogue.turns:
        messages += [{"role": "user", "content": _file_of(url, folder)} for url in turn.pictures]
        if turn.role == "user" and not turn.text:
            continue
        text = as_plain_text(turn.text)
        messages.append({"role": turn.role, "content": f"⚠ {text}" if turn.is_error else text})
    return messages


def as_plain_text(text: str) -> str:
    """Return text that gr.Chatbot shows to the letter: it would take tags and entities for HTML."""
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", text))


def turn_at(dialogue: Dialogue, index: int) -> int:
    """Return which turn the message at `index` of `messages_of` belongs to."""
    position = -1
    for number, turn in enumerate(dialogue.turns):
        position += len(turn.pictures) + int(turn.role == "assistant" or bool(turn.text))
        if index <= position:
            return number
    return len(dialogue.turns) - 1


def _file_of(url: str, folder: Path) -> dict[str, str]:
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.jpg"
    if not path.exists():
        image = load_image(url, limits=LIMITS, allow_path=False).convert("RGB")
        image.thumbnail(_THUMBNAIL)
        folder.mkdir(parents=True, exist_ok=True)
        image.save(path, format="JPEG", quality=85)
    return {"path": str(path), "alt_text": "picture of the question"}


def saved(image: Image.Image, folder: Path) -> str:
    """Write a picture to `folder` under a name of its pixels, and return its path; old ones go."""
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    path = folder / f"{digest[:32]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            if old.stat().st_mtime < time.time() - KEPT_S:
                old.unlink(missing_ok=True)
        image.save(path)
    return str(path)


def read_uploads(paths: Sequence[str]) -> list[str]:
    """Return uploaded files as data URLs; raises ImageError, ImageLimitError for too many or too large."""
    if len(paths) > MAX_UPLOADS:
        raise ImageLimitError(f"{len(paths)} pictures", remedy=f"Give at most {MAX_UPLOADS} at a time.")
    return [_data_url(Path(path)) for path in paths]


def _data_url(path: Path) -> str:
    image = load_image(path, limits=LIMITS)
    data = path.read_bytes()
    kind = (picture_format(data) or "").lower()
    if len(data) > _MAX_KEPT_BYTES or kind not in ("jpeg", "png", "webp"):
        buffer = io.BytesIO()
        prepare(image).save(buffer, format="PNG")
        data, kind = buffer.getvalue(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pictures_of(urls: Iterable[str], mode: PictureMode) -> list[Image.Image]:
    """Return the pictures as they are sent to a model."""
    return [prepare(load_image(url, limits=LIMITS, allow_path=False), mode) for url in urls]


def examples() -> list[list[dict[str, Any]]]:
    """Return what one may try first: a picture and a question each."""
    questions = {
        "shapes": "What is in the picture?",
        "counting": "How many shapes are there?",
        "number": "What number is written here?",
        "icon": "What is this?",
    }
    return [
        [{"text": questions.get(path.stem, "What is this?"), "files": [str(path)]}]
        for path in example_images()
    ]


CSS: Final = """
.gradio-container { max-width: 1240px !important; margin: auto; }
#title h1 { font-size: 1.35rem; margin: 0; letter-spacing: -0.01em; }
#title p { margin: 0; opacity: .7; font-size: .9rem; }
.stages { min-height: 1.4em; font-size: .82rem; opacity: .75; font-variant-numeric: tabular-nums; }
.votes button, .actions button { min-width: 0 !important; }
#title { padding: 4px 0 0; }
.llava-chat .message img { max-height: 220px; width: auto; }
.llava-chat .message { white-space: pre-wrap; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }
.llava-chat button[aria-label="Share"], .llava-chat button[title="Share"] { display: none !important; }
footer { display: none !important; }
@media (max-width: 640px) {
  .llava-chat { height: 38vh !important; }
  .gradio-container { padding: 6px !important; }
  .actions button, .votes button { padding: 6px 8px !important; font-size: .85rem !important; }
}
"""

HEAD: Final = """
<meta name="referrer" content="no-referrer">
<script>
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector("#stop")?.click();
});
</script>
"""

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""gradio's own scripts are inline and compile templates; nothing may come from or go to another host."""
