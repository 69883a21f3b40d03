"""A chat whose answers come slowly, for tests that press keys: python -m tests.serve.slow_chat"""

from __future__ import annotations

import fcntl
import sys
import termios

from llava.command import run
from llava.serve.chat import chat
from llava.serve.session import Session
from tests.serve.fakes import ScriptedEngine

NUM_PIECES = 200


def main() -> int:
    """Chat with an engine that says one number every tenth of a second."""
    # The new session has no terminal yet; stdin becomes it, so that Ctrl-C is a signal.
    fcntl.ioctl(sys.stdin.fileno(), termios.TIOCSCTTY, 0)
    engine = ScriptedEngine(lambda _: [f"{number} " for number in range(NUM_PIECES)], delay_s=0.1)
    return run(lambda: chat(engine, Session(), model="slow"))


if __name__ == "__main__":
    sys.exit(main())
