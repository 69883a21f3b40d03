"""How every command of the project starts and ends: options in, errors out as one line and an exit code.

Entry points (`llava`, `python -m llava.serve.cli`, ...) call `run` around their real work, and parse with
`OptionParser`. Standard library only, so that `--help` costs nothing.

Exit codes: 0 done, 1 done with failures that were reported, 2 the user's to mend (LlavaError),
130 interrupted by Ctrl-C, 141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, Protocol

from llava import log
from llava.errors import LlavaError, UsageError

EXIT_OK = 0
EXIT_WITH_FAILURES = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class CommandModule(Protocol):
    """What a module must offer to be a sub-command of `llava`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


class OptionParser(argparse.ArgumentParser):
    """An argument parser whose complaints are UsageErrors that name the closest known option."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print over several lines before it exits."""
        raise UsageError(message, remedy=f"See: {self.prog} --help")

    def parse_all(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv`; an option that does not exist is a UsageError that names the nearest one."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=")[0]
            kind = "option" if name.startswith("-") else "argument"
            options = [text for action in self._actions for text in action.option_strings]
            raise UsageError(
                f"{kind} {name} is not known", remedy=f"{nearest(name, options)}See: {self.prog} --help"
            )
        return args


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean X? " for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}? " if close else ""


def say(text: str = "", *, end: str = "\n") -> None:
    """Write to stdout what the command was asked for, at once."""
    try:
        sys.stdout.write(text + end)
    except UnicodeEncodeError:
        # A terminal that is not UTF-8: show what it can show.
        encoding = sys.stdout.encoding
        sys.stdout.write((text + end).encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def note(text: str) -> None:
    """Write to stderr what the person at the terminal should know besides."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def describe_error(error: LlavaError) -> str:
    """Return the one line that stands for an error."""
    return f"error[{error.code}]: {' '.join(str(error).split())}"


def run(main: Callable[[], int], *, is_verbose: bool = False) -> int:
    """Run a command's work; errors that are the user's to mend become one line and an exit code."""
    log.configure(verbose=is_verbose)
    try:
        code = main()
        sys.stdout.flush()
    except SystemExit as ending:  # argparse, after --help
        return ending.code if isinstance(ending.code, int) else EXIT_OK
    except LlavaError as error:
        note(describe_error(error))
        return error.exit_code
    except KeyboardInterrupt:
        note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        note(f"error[file]: {where}{error.strerror}. Check the path, its permissions and the space left.")
        return LlavaError.exit_code
    return code


def _discard_stdout() -> None:
    """Point the closed stdout nowhere, so that the interpreter's last flush is silent too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
