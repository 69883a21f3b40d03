"""From token ids to text, piece by piece: neither half a character nor part of a stop string leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str:
        """Return the text of `token_ids`."""
        ...


class IncrementalDetokenizer:
    """Turn ids into text as they come.

    A piece's text can depend on the ids before it (a leading space, bytes of one character), so each step
    decodes a short window twice, without and with the new id, and returns the difference. Text that ends in a
    replacement character may be an unfinished character and waits for the next id.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window_start = 0
        self._num_read = 0

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, possibly empty."""
        self._ids.append(token_id)
        piece = self._pending()
        if piece.endswith(REPLACEMENT):
            return ""
        self._window_start, self._num_read = self._num_read, len(self._ids)
        return piece

    def flush(self) -> str:
        """Return what is still held back; call once, at the end."""
        piece = self._pending() if self._num_read < len(self._ids) else ""
        self._num_read = len(self._ids)
        return piece

    def _pending(self) -> str:
        window = self._ids[self._window_start :]
        known = self._decode(window[: self._num_read - self._window_start])
        return self._decode(window)[len(known) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class StopFilter:
    """Pass text through until a stop string appears; hold back what could be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """Return the text that is certainly before any stop string."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """Return what was held back in vain; call once, at the end."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
