"""The deployment under attack: its API and, where given, its controller, and a question that both answer.

The same question is asked before the first attack and after each: whatever was done, the answer is the same.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from llava.errors import RemoteError, UsageError
from llava.serve.selftest.outcome import AS_BEFORE, NotApplicableError, Trial
from llava.serve.selftest.service import Reply, Service

COMPLETIONS: Final = "/v1/chat/completions"
GENERATE: Final = "/worker_generate_stream"
QUESTION: Final = "How many objects are there?"
PROMPT: Final = "USER: How many? ASSISTANT:"
_NUM_TOKENS: Final = 12


@dataclass
class Target:
    """What is attacked."""

    api: Service
    controller: Service | None = None
    """With the token as its key."""
    patience_s: float = 75.0
    """How long a server may take to give up on a client that is slow or does not read."""
    model: str = ""
    worker_model: str = ""
    needs_key: bool = False
    """Whether the API asks for one."""
    quiet_s: float = 0.0
    """What the question took in peace."""
    _expected: dict[str, str] = field(default_factory=dict)

    @property
    def services(self) -> list[Service]:
        """The API, and the controller if there is one."""
        return [self.api] if self.controller is None else [self.api, self.controller]

    def open(self) -> None:
        """Learn the models and the right answers; raises RemoteError, UsageError where there are none."""
        models = self.api.send("GET", "/v1/models")
        if models.status == 401:
            raise UsageError(f"{self.api.url} asks for a key", remedy="Give it by --key-file or --key-env.")
        try:
            self.model = str(models.json["data"][0]["id"])
        except (TypeError, LookupError):
            raise RemoteError(
                f"{self.api.url} lists no models: {models.seen}", remedy="Start llava serve there first."
            ) from None
        self.needs_key = self.api.send("GET", "/v1/models", has_key=False).status == 401
        self._expected["API"] = self._answer()
        self.quiet_s = self.ask(QUESTION, picture=a_picture()).seconds
        if self.controller is not None:
            listed = self.controller.post("/list_models", {})
            try:
                self.worker_model = str(listed.json["models"][0])
            except (TypeError, LookupError):
                raise RemoteError(
                    f"{self.controller.url} lists no models: {listed.seen}",
                    remedy="Start the controller and a worker there, and check --token-file.",
                ) from None
            self._expected["controller"] = self._worker_answer()
        empty = [name for name, answer in self._expected.items() if answer.startswith("!")]
        if empty:
            raise RemoteError(
                f"The {empty[0]} does not answer a question before the attacks: {self._expected[empty[0]]}",
                remedy="Look into its log.",
            )

    def close(self) -> None:
        """Close all connections."""
        for service in self.services:
            service.close()

    def ask(self, content: Any, *, picture: bytes | str | None = None, **fields: Any) -> Reply:
        """Ask the API a question; `picture` is the bytes of a file, or an address."""
        url = data_url(picture) if isinstance(picture, bytes) else picture
        if url is not None:
            image = {"type": "image_url", "image_url": {"url": url}}
            content = [image, {"type": "text", "text": content}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": _NUM_TOKENS,
            "temperature": 0,
        }
        return self.api.post(COMPLETIONS, body | fields)

    def generate(self, prompt: str, images: list[str] | None = None, **fields: Any) -> dict[str, Any]:
        """Ask the controller; returns the last frame, with `error_code` and "!" where none came."""
        assert self.controller is not None
        body = {
            "model": self.worker_model,
            "prompt": prompt,
            "temperature": 0,
            "max_new_tokens": _NUM_TOKENS,
            "stop": "</s>",
            "images": images or [],
        }
        return last_frame(self.controller.post(GENERATE, body | fields))

    def need_controller(self) -> Service:
        """Return the controller; raises NotApplicableError where none was given."""
        if self.controller is None:
            raise NotApplicableError("no --controller was given")
        return self.controller

    def afterwards(self) -> Iterator[Trial]:
        """Yield whether everyone still answers, and whether errors gave something away."""
        for name, answer in [("API", self._answer())] + (
            [] if self.controller is None else [("controller", self._worker_answer())]
        ):
            is_same = answer == self._expected[name]
            seen = AS_BEFORE if is_same else f"answers {answer[:60]!r}"
            yield Trial(f"a question to the {name} afterwards", seen, is_same)
        for service in self.services:
            for leak in service.leaks:
                yield Trial("the words of errors", f"give away {leak[:60]!r}", False)
            service.leaks.clear()

    def _answer(self) -> str:
        reply = self.ask(QUESTION, picture=a_picture())
        found = text_of(reply)
        return f"! {reply.seen}" if found is None else found

    def _worker_answer(self) -> str:
        frame = self.generate(PROMPT)
        return f"! {frame}" if frame.get("error_code") else str(frame.get("text", "!"))


def text_of(reply: Reply) -> str | None:
    """Return the text of a completion; None for anything else."""
    try:
        found = reply.json["choices"][0]["message"]["content"]
    except (TypeError, LookupError):
        return None
    return found if isinstance(found, str) else None


def prompt_tokens(reply: Reply) -> int | None:
    """Return how long the prompt of a completion was."""
    found = reply.json.get("usage") if isinstance(reply.json, dict) else None
    return found.get("prompt_tokens") if isinstance(found, dict) else None


def last_frame(reply: Reply) -> dict[str, Any]:
    """Return the last frame of a NUL-framed answer, which holds the error if there is one."""
    frames = [piece for piece in reply.body.split(b"\0") if piece]
    try:
        found = json.loads(frames[-1])
    except (LookupError, ValueError):
        found = None
    return found if isinstance(found, dict) else {"error_code": -1, "text": f"! {reply.seen}"}


def data_url(data: bytes, kind: str = "image/png") -> str:
    """Return a file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def a_picture() -> bytes:
    """Return a harmless picture."""
    written = io.BytesIO()
    image = Image.new("RGB", (64, 48), (240, 240, 240))
    image.paste((200, 30, 30), (10, 10, 30, 30))
    image.save(written, "PNG")
    return written.getvalue()
