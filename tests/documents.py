"""Reads the fenced blocks of our documents, and runs them; `test_readme.py` says which and where.

A block is run when its language is `sh` or `python`. Comments in the Markdown say more:

    <!-- not run: REASON -->   before a block: it is not run, and this is why
    <!-- fails -->             before a block: its command ends with an error
    <!-- output -->            before a `text` block: exactly what the block before it prints, errors too

Commands run in this process, where torch is loaded once, and print to the stdout that is compared.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.log import QUIET

ROOT = Path(__file__).parents[1]
RUN_LANGUAGES = ("sh", "python")
MIN_REASON_WORDS = 3

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!--\s*(not run|output|fails)\b:?\s*((?:(?!-->).)*?)\s*-->\s*\Z", flags=re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str
    note: str = ""
    """ "not run", "fails", "output" or nothing."""
    reason: str = ""
    """Why it is not run."""

    @property
    def is_run(self) -> bool:
        """Whether a test carries it out."""
        return self.language in RUN_LANGUAGES and self.note != "not run"

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file in order."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for fence in _FENCE.finditer(text):
        found = _NOTE.search(text[: fence.start()])
        note, reason = found.groups() if found else ("", "")
        line = text.count("\n", 0, fence.start()) + 1
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        blocks.append(Block(name, line, fence[1], fence[2], note, reason))
    return blocks


def expected_outputs(blocks: Sequence[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Yield each block that is run, with the `output` block that follows it, if one does."""
    for index, block in enumerate(blocks):
        following = blocks[index + 1] if index + 1 < len(blocks) else None
        if block.is_run:
            yield block, following if following is not None and following.note == "output" else None


def run_block(block: Block, namespace: dict[str, Any]) -> str:
    """Carry out a block in the working directory; returns what it printed on stdout.

    namespace: the variables of the document's Python blocks. Raises AssertionError for a command that fails.
    """
    printed = io.StringIO()
    with quiet_process(), contextlib.redirect_stdout(printed):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), namespace)
        else:
            for command in commands_of(block.text):
                error = _run_command(command, block)
                printed.write(error if block.note == "fails" else "")
    return printed.getvalue()


def commands_of(text: str) -> list[str]:
    """Return the commands of a shell block: comments dropped, continued lines joined."""
    joined = text.replace("\\\n", " ")
    lines = (line.strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _run_command(command: str, block: Block) -> str:
    """Run one command line; returns what it printed on stderr."""
    words = shlex.split(command, comments=True)
    typed = ""
    if words[0] == "echo" and "|" in words:
        bar = words.index("|")
        typed, words = " ".join(words[1:bar]) + "\n", words[bar + 1 :]
    with _typing(typed), contextlib.redirect_stderr(io.StringIO()) as complaints:
        code = _entry_point(words, block)()
    has_failed = code not in (0, None)
    assert has_failed == (block.note == "fails"), f"{block}: {command!r} gave {code}: {complaints.getvalue()}"
    return complaints.getvalue()


def _entry_point(words: Sequence[str], block: Block) -> Callable[[], object]:
    """Return what a command line calls; only our own programs can be run in this process."""
    if words[:2] == ["make", "chat"]:
        # What the Makefile makes of it, as tests/test_setup_env.py checks.
        options = {"IMAGE": "--image=", "PROMPT": "--prompt="}
        given = (word.partition("=") for word in words[2:])
        words = ["llava", "chat", *(options[name] + value for name, _, value in given)]
    if words[0] == "llava":
        main = importlib.import_module("llava.cli").main
        return lambda: main(words[1:])
    if words[:2] == ["python", "-m"] and words[2].startswith("llava."):
        main = importlib.import_module(words[2]).main
        return lambda: main(words[3:])
    if words[0] == "python" and words[1].startswith(("scripts/", "bench/")):
        name = words[1].removesuffix(".py").replace("/", ".")
        main = importlib.import_module(name).main
        return lambda: main(words[2:])
    raise AssertionError(f"{block}: cannot run {words[0]!r}; write <!-- not run: REASON --> before the block")


@contextlib.contextmanager
def _typing(text: str) -> Iterator[None]:
    """Let `text` be what arrives on stdin, from no terminal."""
    before, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = before


@contextlib.contextmanager
def quiet_process() -> Iterator[None]:
    """Undo what a program's start does to the process: its log handlers, levels and warning filters."""
    loggers = [logging.getLogger(name) for name in (None, "llava", *QUIET)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for logger, level, handlers in before:
                logger.setLevel(level)
                logger.handlers[:] = handlers


def links_of(path: Path) -> list[str]:
    """Return the targets of a document's links to files of this project, without anchors."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.split("#")[0] for target in targets if "://" not in target and target.split("#")[0]]
