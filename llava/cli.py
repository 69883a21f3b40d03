"""The `llava` command: finds the sub-command, imports only that, and runs it.

A sub-command is a module with `add_arguments(parser)` and `run(args)`; adding one is a line in COMMANDS.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, cast

import llava
from llava.command import EXIT_OK, CommandModule, OptionParser, nearest, run, say
from llava.errors import UsageError


class Command(NamedTuple):
    """One sub-command: its line in the help, and the module that carries it out."""

    summary: str
    module: str


COMMANDS = {
    "chat": Command(
        "talk about a picture: interactive, one question (-p), or many into a JSONL", "llava.serve.chat"
    ),
    "serve": Command(
        "answer over HTTP: an OpenAI-compatible API for one or several models", "llava.serve.command"
    ),
    "bench": Command("measure how fast an engine answers, alone and under load", "llava.serve.bench.command"),
    "doctor": Command("find what is wrong with training data", "llava.data.doctor.command"),
    "describe": Command("say what a checkpoint is", "llava.serve.describe"),
    "eval": Command("score a model on benchmarks, compare and report", "llava.eval.command"),
    "export": Command("write a checkpoint for other programs, with a parity report", "llava.export.command"),
    "plan": Command("predict memory, hours and disk of a training run", "llava.train.planning.command"),
    "selftest": Command("attack one's own server on this machine", "llava.serve.selftest.command"),
    "train": Command("train a model as a recipe says", "llava.train.command"),
    "votes": Command("sum up the votes of the web page, and export them", "llava.serve.web.votes"),
}

HELP = """\
usage: llava COMMAND [options]

Vision-language chat models of the LLaVA / InternVL-Chat V1.0 family.

commands:
{commands}

options:
  -h, --help   show this; `llava COMMAND --help` shows a command's options
  --version    show the version

Exit codes: 0 done, 1 done with failures that were listed, 2 an error you can mend, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _dispatch(words), is_verbose="--debug" in words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(
            HELP.format(
                commands="\n".join(f"  {name:<12} {command.summary}" for name, command in COMMANDS.items())
            )
        )
        return EXIT_OK
    if words[0] == "--version":
        say(f"llava {llava.__version__}")
        return EXIT_OK
    name = words[0]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UsageError(f"{kind} {name} is not known", remedy=f"{nearest(name, COMMANDS)}See: llava --help")
    module = cast(CommandModule, import_module(COMMANDS[name].module))
    parser = OptionParser(prog=f"llava {name}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    return module.run(parser.parse_all(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
