"""Listeners on this machine that nobody should call: whoever does is counted, and proves a breach."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType

_SETTLE_S = 0.15
"""How long after the last answer a connection may still come."""


class Canary:
    """A listener on a free port of loopback. To be used with `with`."""

    def __init__(self, host: str = "127.0.0.1", *, redirect_to: str = "") -> None:
        """Listen; raises OSError where this machine has no such address.

        redirect_to: where callers are sent on; "" answers them 404.
        """
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._listener.bind((host, 0))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(64)
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._answer = (
            f"HTTP/1.1 302 Found\r\nLocation: {redirect_to}\r\nContent-Length: 0\r\n\r\n"
            if redirect_to
            else "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        self._num_calls = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Canary:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def num_calls(self) -> int:
        """Return how many connections came, late ones too."""
        time.sleep(_SETTLE_S)
        return self._num_calls

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._num_calls += 1
            with connection:
                connection.settimeout(0.2)
                try:
                    connection.recv(1 << 16)
                    connection.sendall(self._answer)
                except OSError:
                    continue  # it came, and that is what counts
