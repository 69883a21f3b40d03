"""What a judge is asked and what it said, and the file that keeps both, so that nothing is paid for twice.

    STORE    {"key", "model", "request", "sample", "text", "num_prompt_tokens", "num_new_tokens", "asked_at"}

one JSON object a line, appended as replies come. The key is a hash of the request and of `sample`, which
tells askings of the same words apart (a second run, a third attempt).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llava.errors import FileError
from llava.files import read_jsonl
from llava.journal import Journal, cut_torn_line

Message = Mapping[str, str]
"""{"role", "content"}"""


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One thing to ask a judge."""

    messages: Sequence[Message]
    temperature: float | None
    """None leaves it to the judge."""
    max_tokens: int
    sample: int | str = 0
    """Tells askings of the same words apart."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Fields to add to the body or to replace; None removes one."""

    def body(self, model: str) -> dict[str, Any]:
        """Return the JSON body as it is sent."""
        own: dict[str, Any] = {
            "model": model,
            "messages": [dict(message) for message in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        return {name: value for name, value in (own | dict(self.extra)).items() if value is not None}

    def key(self, model: str) -> str:
        """Return what a reply is found again by."""
        text = json.dumps([self.body(model), self.sample], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said."""

    text: str
    num_prompt_tokens: int | None = None
    """As the judge counted; None where it does not say."""
    num_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A line of a store."""

    model: str
    request: JudgeRequest
    reply: Reply
    asked_at: str


class ReplyStore:
    """Replies by request. May be used from several threads."""

    def __init__(self, path: Path | None, *, is_read_only: bool = False) -> None:
        """Take up the file at `path`, which need not exist; None keeps replies in memory alone.

        Raises FileError when it cannot be read, UsageError when another process writes it.
        """
        self._lock = threading.Lock()
        self._replies: dict[str, Reply] = {}
        self._journal: Journal | None = None
        if path is None:
            return
        if is_read_only and not path.exists():
            raise FileError(f"{path} does not exist", remedy="Nothing can be replayed without it.")
        if path.exists() and not is_read_only:
            cut_torn_line(path)
        if path.exists():
            for key, stored in read_store(path).items():
                self._replies[key] = stored.reply
        if not is_read_only:
            self._journal = Journal(path, sync_interval_s=0)

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, None where it was never asked."""
        return self._replies.get(key)

    def put(self, request: JudgeRequest, model: str, reply: Reply) -> None:
        """Keep a reply; it is on the disk when this returns."""
        key = request.key(model)
        with self._lock:
            self._replies[key] = reply
            if self._journal is None:
                return
            self._journal.append(
                {
                    "key": key,
                    "model": model,
                    "request": request.body(model),
                    "sample": request.sample,
                    "text": reply.text,
                    "num_prompt_tokens": reply.num_prompt_tokens,
                    "num_new_tokens": reply.num_new_tokens,
                    "asked_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                }
            )

    def close(self) -> None:
        """Let the file go. May be called twice."""
        if self._journal is not None:
            self._journal.close()


def read_store(path: Path) -> dict[str, StoredReply]:
    """Return what a store holds, by key, in order; raises FileError naming a line that is no reply."""
    found: dict[str, StoredReply] = {}
    for number, record in read_jsonl(path):
        try:
            body = dict(record["request"])
            model = str(body.pop("model"))
            request = JudgeRequest(
                body.pop("messages"), body.pop("temperature", None), body.pop("max_tokens", 0),
                record["sample"], body,
            )  # fmt: skip
            reply = Reply(str(record["text"]), record["num_prompt_tokens"], record["num_new_tokens"])
            found[record["key"]] = StoredReply(model, request, reply, str(record["asked_at"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FileError(f"{path} line {number} is no reply of a judge: {error!r}") from error
    return found
