"""A real process on a real (pseudo) terminal: keys, not function calls."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30
REACTION_S = 0.2
CTRL_C, CTRL_D = "\x03", "\x04"


class Keyboard:
    """Presses keys in a process and reads its screen."""

    def __init__(self, *command: str) -> None:
        self._main, child = pty.openpty()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(child)
        self._unread = ""

    def press(self, keys: str) -> None:
        # Not faster than a hand: CPython's readline loses a signal that comes between prompt and select().
        time.sleep(REACTION_S)
        os.write(self._main, keys.encode())

    def wait_for(self, text: str) -> str:
        """Return what is shown up to and with `text`."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self._unread:
            ready, _, _ = select.select([self._main], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} on the screen, but {self._unread!r}"
            self._unread += os.read(self._main, 4096).decode().replace("\r\n", "\n")
        end = self._unread.index(text) + len(text)
        shown, self._unread = self._unread[:end], self._unread[end:]
        return shown

    def exit_code(self) -> int:
        return self._process.wait(TIMEOUT_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._main)


@pytest.fixture
def keyboard() -> Iterator[Keyboard]:
    keyboard = Keyboard(sys.executable, "-m", "tests.serve.slow_chat")
    yield keyboard
    keyboard.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(keyboard: Keyboard) -> None:
    keyboard.wait_for("USER: ")
    keyboard.press("Count.\n")
    keyboard.wait_for("ASSISTANT: 0 1 ")
    keyboard.press(CTRL_C)
    shown = keyboard.wait_for("[stopped]\n")
    assert " 50 " not in shown
    keyboard.wait_for("USER: ")
    keyboard.press("Again.\n")
    keyboard.wait_for("ASSISTANT: 0 1 ")
    keyboard.press(CTRL_C)
    keyboard.wait_for("USER: ")
    keyboard.press("\n")
    keyboard.wait_for("exit...\n")
    assert keyboard.exit_code() == 0


def test_ctrl_c_twice_at_the_prompt_leaves(keyboard: Keyboard) -> None:
    keyboard.wait_for("USER: ")
    keyboard.press(CTRL_C)
    keyboard.wait_for("Ctrl-C again")
    keyboard.wait_for("USER: ")
    keyboard.press(CTRL_C)
    shown = keyboard.wait_for("exit...\n")
    assert "Traceback" not in shown
    assert keyboard.exit_code() == 0


def test_the_end_of_the_input_leaves(keyboard: Keyboard) -> None:
    keyboard.wait_for("USER: ")
    keyboard.press(CTRL_D)
    keyboard.wait_for("exit...\n")
    assert keyboard.exit_code() == 0
