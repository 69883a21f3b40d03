"""The original's log of dialogues: only ever made where `--log-conversations` asks for it.

Source: `gradio_web_server.py` of the original. FOLDER/YYYY-MM-DD-conv.json holds lines of JSON, one for each
answer and one for each vote; FOLDER/serve_images/YYYY-MM-DD/<md5 of the pixels>.jpg the pictures. Unlike the
original's, `finish` is when the answer ended, and pictures of any mode are saved.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from llava.conversation import conv_templates
from llava.errors import FileError
from llava.processing.images import to_rgb
from llava.serve.web.appending import append_line
from llava.serve.web.history import Dialogue
from llava.templates import get_template

VoteKind = Literal["upvote", "downvote", "flag"]


class ConversationLog:
    """Writes below a folder; every method may be called from several threads and processes."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def chat(
        self,
        *,
        model: str,
        started_at: float,
        finished_at: float,
        state: Mapping[str, Any],
        images: Sequence[Image.Image] = (),
        ip: str = "",
    ) -> None:
        """Log an answer and save its dialogue's pictures; times are seconds since 1970. Raises FileError."""
        append_line(
            self._path(finished_at),
            {
                "tstamp": round(finished_at, 4),
                "type": "chat",
                "model": model,
                "start": round(started_at, 4),
                "finish": round(finished_at, 4),
                "state": dict(state),
                "images": [self._save(image, finished_at) for image in images],
                "ip": ip,
            },
        )

    def vote(self, kind: VoteKind, *, model: str, state: Mapping[str, Any], ip: str = "") -> None:
        """Log a vote on the last answer of a dialogue. Raises FileError."""
        now = self._clock()
        record = {"tstamp": round(now, 4), "type": kind, "model": model, "state": dict(state), "ip": ip}
        append_line(self._path(now), record)

    def _path(self, seconds: float) -> Path:
        return self._folder / f"{_day(seconds)}-conv.json"

    def _save(self, image: Image.Image, seconds: float) -> str:
        """Write a picture that is not there yet, whole or not at all, and return its name."""
        name = hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()
        path = self._folder / "serve_images" / _day(seconds) / f"{name}.jpg"
        if path.exists():
            return name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as stream:
                    to_rgb(image).save(stream, format="JPEG")
                Path(part).replace(path)
            finally:
                Path(part).unlink(missing_ok=True)
        except OSError as error:
            raise FileError(
                f"{path} cannot be written: {error.strerror or error}",
                remedy="Give --log-conversations a folder that can be written, on a disk with room.",
            ) from error
        return name


def state_of(dialogue: Dialogue, template: str) -> dict[str, Any]:
    """Return a dialogue as the original's log holds it: `Conversation.dict()` in a model's template."""
    conversation = conv_templates[get_template(template).name].copy()
    # A list again: a template's own messages are a tuple.
    conversation.messages = [list(message) for message in conversation.messages]
    for turn in dialogue.turns:
        text = turn.text + "\n<image>" * len(turn.pictures)
        conversation.append_message(conversation.roles[turn.role == "assistant"], text)
    return conversation.dict()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")
