"""The interactive chat: reads lines, answers questions, obeys slash commands.

`llava chat` and `python -m llava.serve.cli` both end here. As in the original (llava/serve/cli.py) an empty
line or the end of the input prints `exit...` and leaves; unlike it, history keeps answers without control
tokens, Ctrl-C stops an answer instead of the program, and pictures can be changed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, describe_error, note, say
from llava.errors import LlavaError
from llava.serve.answering import (
    Engine,
    Outcome,
    check_text,
    printable,
    rendered_prompt,
    speed_line,
    stream_answer,
)
from llava.serve.commands import obey
from llava.serve.session import OpenPicture, Session
from llava.templates import ChatTemplate


@dataclass
class Terminal:
    """A chat session on a terminal or a pipe."""

    engine: Engine
    session: Session
    model: str
    """Name of the model, for the transcript."""
    open_picture: OpenPicture
    """Opens what the person types: a path or a URL."""
    open_saved_picture: OpenPicture
    """Opens what a transcript names; it may come from elsewhere, so no URL is fetched for it."""
    read_line: Callable[[str], str]
    """Reads a line after showing a prompt; raises EOFError at the end."""
    is_interactive: bool
    """Whether a person sees the output as it comes: prompts and names are shown only then."""
    shows_speed: bool = False
    shows_debug: bool = False
    num_errors: int = 0

    def run(self) -> int:
        """Talk until an empty line, the end of the input, /exit, or Ctrl-C twice at the prompt.

        Returns the exit code: where no person reads the errors, having had one is a failure.
        """
        self.show_pictures()
        about = "about it" if self.session.pictures else "something, or show a picture with /image PATH"
        self.status(f"Ask {about}. /help lists the commands; an empty line ends the chat.")
        user, _ = self.names()
        was_interrupted = False
        while True:
            try:
                line = self.read_line(f"{user}: " if self.is_interactive else "")
                if not line.strip() or self._is_last(line):
                    break
                was_interrupted = False
            except EOFError:
                self.status("")
                break
            except KeyboardInterrupt:
                if was_interrupted:
                    break
                was_interrupted = True
                self.status("\n(Ctrl-C again, or an empty line, ends the chat)")
        say("exit...")
        return EXIT_WITH_FAILURES if self.num_errors and not self.is_interactive else EXIT_OK

    def _is_last(self, line: str) -> bool:
        """Carry out one line; returns whether it ends the chat. Errors are shown and change nothing."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                return obey(self, line)
            self._ask(line[1:] if line.startswith("//") else line)
        except LlavaError as error:
            note(describe_error(error))
            self.num_errors += 1
        return False

    def _ask(self, question: str) -> None:
        check_text(question)
        request = self.session.request(question)
        if self.is_interactive:
            say(f"{self.names()[1]}: ", end="")
        try:
            outcome = stream_answer(self.engine, request, write=self._write)
        except LlavaError:
            self.status("")  # the error gets a line of its own
            raise
        say(" [stopped]" if outcome.is_stopped and self.is_interactive else "")
        self._keep(question, outcome)
        if self.shows_debug:
            say(f"\n{ ({'prompt': rendered_prompt(self.engine, request), 'outputs': outcome.text}) }\n")
        if self.shows_speed and outcome.answer is not None:
            self.status(speed_line(outcome.answer), is_wanted=True)

    def _keep(self, question: str, outcome: Outcome) -> None:
        # An empty answer is not kept: in a prompt it would read as the place where the next answer begins.
        if outcome.text:
            self.session.add(question, outcome.text, is_stopped=outcome.is_stopped)
        else:
            self.status("(no answer; the question is forgotten)", is_wanted=True)

    def _write(self, text: str) -> None:
        say(printable(text) if self.is_interactive else text, end="")

    def status(self, text: str, *, is_wanted: bool = False) -> None:
        """Tell a person how things stand; in a pipe only what was asked for, and beside the answers."""
        if self.is_interactive:
            say(text)
        elif is_wanted:
            note(text)

    def show_pictures(self) -> None:
        """Tell a person which pictures are talked about."""
        for number, picture in enumerate(self.session.pictures, start=1):
            self.status(f"[picture {number}] {picture}")

    def names(self) -> tuple[str, str]:
        """Return what the two sides are called."""
        return role_names(self.engine.template)


def role_names(template: ChatTemplate) -> tuple[str, str]:
    """Return what to call the two sides on a terminal, as the original does."""
    if template.style == "MPT":
        # The template's own names are control tokens.
        return "user", "assistant"
    return template.roles[0], template.roles[1]
