"""NUL framing: each JSON object of a stream is followed by one zero byte, which JSON text never holds."""

from __future__ import annotations

from llava.errors import RequestError

MAX_FRAME_BYTES = 16 << 20
"""A frame of the original's protocol repeats the prompt and everything so far; pictures are never in it."""


class FrameDecoder:
    """Cuts a stream into frames, however its bytes arrive."""

    def __init__(self, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
        """`max_bytes`: of one frame, so that a sender without end cannot fill the memory."""
        self._max_bytes = max_bytes
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the frames that `chunk` completes, without NULs; raises RequestError for one too long."""
        *complete, rest = chunk.split(b"\0")
        frames = []
        for part in complete:
            self._hold(part)
            frames.append(bytes(self._held))
            self._held.clear()
        self._hold(rest)
        # The original's clients skip empty frames too.
        return [frame for frame in frames if frame]

    @property
    def is_between_frames(self) -> bool:
        """Whether everything so far is complete."""
        return not self._held

    def _hold(self, part: bytes) -> None:
        if len(self._held) + len(part) > self._max_bytes:
            raise RequestError(
                f"a frame of more than {self._max_bytes} bytes",
                remedy="Check that a worker or controller is at this address.",
            )
        self._held += part
