"""The slash commands of the interactive chat."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llava.command import nearest, say
from llava.errors import UsageError

if TYPE_CHECKING:
    from llava.serve.terminal import Terminal

END_COMMANDS = ("exit", "quit")


class ChatCommand(NamedTuple):
    """A slash command."""

    arguments: str
    """What follows its name, as the help shows it; empty when nothing does."""
    help: str
    action: Callable[[Terminal, list[str]], None]


def obey(chat: Terminal, line: str) -> bool:
    """Carry out a line that begins with a slash; returns whether it ends the chat. Raises LlavaErrors."""
    name, _, rest = line[1:].strip().partition(" ")
    if name in END_COMMANDS:
        return True
    if name not in COMMANDS:
        close = nearest(f"/{name}", [f"/{known}" for known in COMMANDS])
        raise UsageError(f"command /{name} is not known", remedy=f"{close}/help lists them.")
    words = _split(rest)
    if words and not COMMANDS[name].arguments:
        raise UsageError(f"/{name} takes nothing after it", remedy=f"Write /{name} alone.")
    COMMANDS[name].action(chat, words)
    return False


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"cannot read {text!r}: {error}", remedy="Close the quotation mark.") from None


def _one_file(words: Sequence[str], name: str) -> Path:
    if len(words) != 1:
        raise UsageError(f"/{name} takes one file", remedy=f"Write /{name} FILE.")
    if not words[0].isprintable():
        raise UsageError(f"{words[0]!r} is no file name", remedy=f"Write /{name} FILE.")
    return Path(os.path.expanduser(words[0]))


def _require_pictures(words: Sequence[str], name: str) -> None:
    if not words:
        raise UsageError(f"/{name} takes one or more pictures", remedy=f"Write /{name} PATH...")


def _change_pictures(chat: Terminal, words: list[str]) -> None:
    _require_pictures(words, "image")
    chat.session.change_pictures([chat.open_picture(word) for word in words])
    chat.show_pictures()


def _add_pictures(chat: Terminal, words: list[str]) -> None:
    _require_pictures(words, "add")
    chat.session.waiting += [chat.open_picture(word) for word in words]
    chat.show_pictures()


def _list_pictures(chat: Terminal, _: list[str]) -> None:
    for number, picture in enumerate(chat.session.pictures, start=1):
        say(f"[picture {number}] {picture.source} {picture.image.width}x{picture.image.height}")
    if not chat.session.pictures:
        say("no picture")


def _undo(chat: Terminal, _: list[str]) -> None:
    question = chat.session.undo()
    chat.status("nothing to undo" if question is None else f"forgotten: {question}")


def _reset(chat: Terminal, _: list[str]) -> None:
    chat.session.reset()
    chat.status("a new conversation about the same pictures")


def _save(chat: Terminal, words: list[str]) -> None:
    path = _one_file(words, "save")
    chat.session.save(path, model=chat.model, template=chat.engine.template.name)
    chat.status(f"saved {path}")


def _load(chat: Terminal, words: list[str]) -> None:
    chat.session.load(_one_file(words, "load"), chat.open_saved_picture)
    chat.show_pictures()
    user, assistant = chat.names()
    for message in chat.session.messages:
        chat.status(f"{user if message.role == 'user' else assistant}: {message.text}")


def _set(chat: Terminal, words: list[str]) -> None:
    chat.session.set(words)
    settings = chat.session.sampling.to_dict()
    chat.status(" ".join(f"{name}={value}" for name, value in settings.items() if name != "stop"))


def _speed(chat: Terminal, _: list[str]) -> None:
    chat.shows_speed = not chat.shows_speed
    chat.status(f"speed is {'shown' if chat.shows_speed else 'not shown'}")


def _help(_: Terminal, __: list[str]) -> None:
    entries = [(f"/{name} {command.arguments}", command.help) for name, command in COMMANDS.items()]
    entries += [
        ("/exit", "end the chat, as an empty line does"),
        ("//TEXT", "ask a question that begins with /"),
    ]
    for usage, text in entries:
        say(f"  {usage:<22} {text}")


COMMANDS = {
    "image": ChatCommand("PATH...", "talk about other pictures, in a new conversation", _change_pictures),
    "add": ChatCommand("PATH...", "add pictures to the next question", _add_pictures),
    "images": ChatCommand("", "list the pictures", _list_pictures),
    "undo": ChatCommand("", "forget the last question and its answer", _undo),
    "reset": ChatCommand("", "forget all questions, keep the pictures", _reset),
    "save": ChatCommand("FILE", "write the transcript", _save),
    "load": ChatCommand("FILE", "continue a transcript", _load),
    "set": ChatCommand("NAME=VALUE...", "change temperature, top_p, top_k, max_new_tokens, seed, ...", _set),
    "speed": ChatCommand("", "show the speed of each answer, or stop showing it", _speed),
    "help": ChatCommand("", "this list", _help),
}
