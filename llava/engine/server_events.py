"""Server-sent events: bytes of a response to the data of its events, within limits.

Format: WHATWG HTML, "Server-sent events". Of an event only its data is kept; a comment (": ping") is nothing.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 4 << 20
"""An event is a few hundred bytes; log-probabilities of 20 tokens are a few thousand."""


class EventTooLongError(Exception):
    """An event without end."""


class EventReader:
    """Collects bytes and gives the data of the events that are complete."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._data: list[str] = []
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> list[str]:
        """Return the data of each event that `chunk` completes; raises EventTooLongError."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for line in lines:
            data = self._line(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if data is not None:
                events.append(data)
        if len(self._rest) + self._num_bytes > self._max_bytes:
            raise EventTooLongError(f"an event of more than {self._max_bytes} bytes")
        return events

    def end(self) -> list[str]:
        """Return the data of an event that the end of the response completes, if there is one."""
        return [data for data in (*self.feed(b"\n"), *self.feed(b"\n")) if data]

    def _line(self, line: str) -> str | None:
        if not line:
            data, self._data, self._num_bytes = self._data, [], 0
            return "\n".join(data) if data else None
        field, _, value = line.partition(":")
        # llama-server of 2024 reported errors in a field of this name.
        if field in ("data", "error"):
            self._data.append(value.removeprefix(" "))
            self._num_bytes += len(value)
        return None
