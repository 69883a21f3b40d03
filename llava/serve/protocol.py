"""What controller, workers and clients say to each other: the original's JSON as typed records.

Source: the original's `llava/serve/{controller,model_worker}.py`. Field names, defaults and error numbers are
theirs, so that their processes mix with ours; fields that they do not know, they ignore. Ours are:

    request   deltas (send only what is new), seed, top_k, repetition_penalty, several stop strings
    stream    delta instead of text; code, cause, remedy, docs, request_id beside an error_code; and in the
              last message finish_reason, usage, timing
    status    templates (model -> prompt template), instance (tells a restarted worker from an older one)
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import RequestError
from llava.serve import fields

MAX_NEW_TOKENS = 1024
"""The original's cap, for its clients; ours ask for as many as the context holds."""
MAX_PROMPT_CHARS = 400_000
MAX_IMAGES = 16
MAX_IMAGE_CHARS = 96 << 20
"""A picture of 64 MiB in base64, and some line breaks."""
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_MODELS = 256
MAX_NAME_CHARS = 512
GREEDY_BELOW = 0.001
"""The original samples only above this temperature."""
SMALLEST_TOP_P = 1e-6
"""Stands for the original's top_p 0, which keeps the likeliest token alone."""
NO_ROOM = "Exceeds max token length. Please start a new conversation, thanks."
"""What the original answers, without an error number, where prompt and pictures fill the context."""

_ADDRESS = re.compile(r"https?://[A-Za-z0-9.\-_\[\]:]+(/[A-Za-z0-9.\-_~/%]*)?", re.ASCII)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.ASCII)


class ErrorNumber(IntEnum):
    """The original's `error_code`."""

    OK = 0
    WORKER = 1
    """Anything that went wrong in the worker."""
    NO_WORKER = 2
    """The controller knows no worker for the model."""
    UNREACHABLE = 3
    """The controller cannot reach the worker, or lost it in the middle of an answer."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker offers, and how busy it is."""

    model_names: tuple[str, ...]
    speed: float = 1.0
    """Relative to other workers; a worker twice as fast gets twice the requests."""
    queue_length: int = 0
    """Requests under way or waiting."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Model -> name of its prompt template; empty for the original's workers, which do not say."""
    instance: str = ""
    """Names the process; empty for the original's workers."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WorkerStatus:
        """Read a status; raises RequestError for a field that cannot be."""
        names = fields.texts(value, "model_names", max_count=MAX_MODELS, max_length=MAX_NAME_CHARS)
        if not names or not all(names):
            raise RequestError("model_names names no model", remedy="Give a list of names.")
        return cls(
            model_names=names,
            speed=fields.number(value, "speed", default=1, low=1e-6, high=1e9),
            queue_length=fields.whole(value, "queue_length", default=0, high=1 << 30),
            templates=_templates(value.get("templates"), names),
            instance=fields.text(value, "instance", default="", max_length=64),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the status as it travels."""
        return {
            "model_names": list(self.model_names),
            "speed": int(self.speed) if self.speed == int(self.speed) else self.speed,
            "queue_length": self.queue_length,
            "templates": dict(self.templates),
            "instance": self.instance,
        }


def _templates(value: object, names: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {
        name: template
        for name, template in value.items()
        if name in names and isinstance(template, str) and len(template) <= MAX_NAME_CHARS
    }


@dataclass(frozen=True, slots=True)
class Registration:
    """A worker that wants to be known."""

    worker_name: str
    """Its address."""
    check_heart_beat: bool = True
    """Whether it is dropped when it falls silent."""
    worker_status: WorkerStatus | None = None
    """None: the controller asks the worker."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Registration:
        """Read a registration; raises RequestError."""
        status = value.get("worker_status")
        if status is not None and not isinstance(status, dict):
            raise RequestError("worker_status is no object", remedy="Give an object, or null.")
        return cls(
            worker_name=address_of(value),
            check_heart_beat=fields.flag(value, "check_heart_beat"),
            worker_status=None if status is None else WorkerStatus.from_json(status),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the registration as it travels."""
        status = self.worker_status
        return {
            "worker_name": self.worker_name,
            "check_heart_beat": self.check_heart_beat,
            "worker_status": None if status is None else status.to_json(),
        }


def address_of(value: Mapping[str, Any]) -> str:
    """Return `worker_name`, an http(s) address without anything that two readers could read differently."""
    name = fields.text(value, "worker_name", max_length=MAX_NAME_CHARS)
    if _ADDRESS.fullmatch(name) is None or not _names_one_host(name):
        raise RequestError(
            "worker_name is not the address of a worker", remedy="Write it as http://HOST:PORT."
        )
    return name.rstrip("/")


def _names_one_host(address: str) -> bool:
    """Say whether the host is a plain name or number, and no number that leads to a cloud's own services."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
        if ":" not in host and not _NUMBER.fullmatch(host.rpartition(".")[2]):
            return _NAME.fullmatch(host) is not None
        # Strictly four decimal numbers: what else names an IPv4 address, programs read each in their own way.
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    is_mapped = isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None
    return not (is_mapped or number.is_link_local or number.is_multicast or number.is_unspecified)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer wanted."""

    prompt: str
    """Rendered, with one `<image>` for each picture."""
    model: str = ""
    """Decides the worker; workers themselves do not look at it."""
    images: tuple[str, ...] = ()
    """Pictures as base64 of a file in any format that pictures have."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    """0 leaves no room for an answer."""
    stop: tuple[str, ...] = ()
    deltas: bool = False
    """Whether the stream holds what is new instead of everything so far."""
    seed: int | None = None
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GenerateRequest:
        """Read a request; raises RequestError for a field that cannot be."""
        deltas = fields.flag(value, "deltas", default=False)
        wanted = fields.whole(value, "max_new_tokens", default=256, low=0, high=1 << 30)
        seed = value.get("seed")
        return cls(
            prompt=fields.text(value, "prompt", max_length=MAX_PROMPT_CHARS),
            model=fields.text(value, "model", default="", max_length=MAX_NAME_CHARS),
            images=fields.texts(value, "images", max_count=MAX_IMAGES, max_length=MAX_IMAGE_CHARS),
            temperature=fields.number(value, "temperature", default=1.0, low=0, high=100),
            top_p=fields.number(value, "top_p", default=1.0, low=0, high=1),
            max_new_tokens=wanted if deltas else min(wanted, MAX_NEW_TOKENS),
            stop=tuple(
                stop
                for stop in fields.texts(
                    value, "stop", max_count=MAX_STOP_STRINGS, max_length=MAX_STOP_CHARS, is_lone_ok=True
                )
                if stop
            ),
            deltas=deltas,
            seed=None if seed is None else fields.whole(value, "seed"),
            top_k=fields.whole(value, "top_k", default=0, high=1 << 30),
            repetition_penalty=fields.number(value, "repetition_penalty", default=1.0, low=1e-3, high=10),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the request as it travels; fields that the original does not know only where they matter."""
        value: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            # The original's workers take a single one.
            "stop": self.stop[0] if len(self.stop) == 1 else list(self.stop) or None,
            "images": list(self.images),
        }
        if self.deltas:
            value["deltas"] = True
        if self.seed is not None:
            value["seed"] = self.seed
        if self.top_k:
            value["top_k"] = self.top_k
        if self.repetition_penalty != 1:
            value["repetition_penalty"] = self.repetition_penalty
        return value


def affinity_of(model: str, images: tuple[str, ...], first_turn: str) -> str:
    """Return a key that all requests of one conversation share: model and first picture, or first words."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass"))
    beginning = images[0] if images else first_turn.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    digest.update(b"\0picture\0" if images else b"\0words\0")
    digest.update(beginning.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One frame of an answer."""

    text: str | None = None
    """The prompt and everything so far, or the words of an error; None where `delta` is sent."""
    delta: str | None = None
    """What is new."""
    error_code: int = ErrorNumber.OK
    code: str = ""
    """Of an error: its code, cause, remedy, the page of the documentation, and the request that met it."""
    cause: str = ""
    remedy: str = ""
    docs: str = ""
    request_id: str = ""
    finish_reason: str = ""
    """Only in the last frame of a stream of deltas: "stop" or "length"."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """In the last frame: prompt_tokens, cached_tokens, new_tokens."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """In the last frame, seconds: queued_s, image_s, first_token_s, total_s."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StreamMessage:
        """Read a frame, ours or the original's; raises RequestError."""
        has_delta = "delta" in value
        long = 1 << 26
        return cls(
            text=None if has_delta and "text" not in value else fields.text(value, "text", max_length=long),
            delta=fields.text(value, "delta", max_length=long) if has_delta else None,
            error_code=fields.whole(value, "error_code", default=0, high=1 << 16),
            code=fields.text(value, "code", default=""),
            cause=fields.text(value, "cause", default="", max_length=1 << 16),
            remedy=fields.text(value, "remedy", default="", max_length=1 << 16),
            docs=fields.text(value, "docs", default=""),
            request_id=fields.text(value, "request_id", default=""),
            finish_reason=fields.text(value, "finish_reason", default=""),
            usage={name: fields.whole(_object(value, "usage"), name) for name in _object(value, "usage")},
            timing={name: fields.number(_object(value, "timing"), name) for name in _object(value, "timing")},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the frame as it travels, without the fields that say nothing."""
        value: dict[str, Any] = {}
        if self.text is not None:
            value["text"] = self.text
        if self.delta is not None:
            value["delta"] = self.delta
        value["error_code"] = int(self.error_code)
        for name in ("code", "cause", "remedy", "docs", "request_id", "finish_reason"):
            if found := getattr(self, name):
                value[name] = found
        for name in ("usage", "timing"):
            if found := getattr(self, name):
                value[name] = dict(found)
        return value

    def to_frame(self) -> bytes:
        """Return the frame as bytes, with the NUL that ends it."""
        return json.dumps(self.to_json()).encode() + b"\0"


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, dict) or len(found) > 64:
        raise RequestError(f"{name} is no object", remedy="Give an object of numbers.")
    return found
