"""From a rendered prompt back to the dialogue in it, for engines that take only dialogues.

The original's clients render prompts themselves, and name no template. A template's own words between the
turns are literal texts, found by rendering a probe; a prompt belongs to a template when cutting it at these
literals gives turns that render to exactly the prompt again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from llava.errors import PromptError
from llava.rendering import content_of
from llava.templates import TEMPLATES, ChatTemplate, Turn, get_template

_USER, _ANSWER = "\ue000", "\ue001"
"""Private characters that stand for what is said."""
_MAX_TURNS = 512
_PLAIN_STYLE = "PLAIN"
"""Writes nothing between turns, so that there is nothing to cut at."""


class Dialogue(NamedTuple):
    """What a prompt says, and the template it was rendered by."""

    turns: tuple[Turn, ...]
    template: str


class _Literals(NamedTuple):
    """A template's words around what is said."""

    begin: str
    """Before the first question: system text, examples, role."""
    to_answer: str
    to_question: str
    open_end: str
    """After the last question, where an answer is to follow."""
    closed_end: str
    """After the last question, where no answer is asked for (as the original's test_message does)."""


def read_prompt(prompt: str, *, preferred: str | None = None) -> Dialogue:
    """Return the dialogue of a prompt; raises PromptError where no template renders to it.

    preferred: name of the template that is tried first.
    """
    for name in _in_order(preferred):
        turns = _cut(prompt, name)
        if turns is not None:
            return Dialogue(turns, name)
    raise PromptError(
        "the prompt was rendered by no known template, and this model takes only dialogues",
        remedy="Render it by one of the templates of llava.conversation, without changes.",
    )


def first_question(prompt: str) -> str:
    """Return the first thing that was asked in a prompt; "" where its template is not known."""
    for name in _in_order(None):
        turns = _cut(prompt, name)
        if turns is not None:
            return "".join(part for part in turns[0].content if isinstance(part, str))
    return ""


def _in_order(preferred: str | None) -> Iterable[str]:
    """Yield each template's own name once; the longest beginnings first, since some begin others."""
    names = {template.name for template in TEMPLATES.values() if template.style != _PLAIN_STYLE}
    ordered = sorted(names, key=lambda name: (-len(_literals(name).begin), name))
    return [preferred, *ordered] if preferred is not None else ordered


@cache
def _literals(name: str) -> _Literals:
    template = get_template(name)
    probe = [Turn("user", (_USER,)), Turn("assistant", (_ANSWER,)), Turn("user", (_USER,))]
    rendered = _text(template, probe, is_open=True)
    begin, middle, open_end = rendered.split(_USER)
    to_answer, to_question = middle.split(_ANSWER)
    closed_end = _text(template, probe, is_open=False).split(_USER)[-1]
    return _Literals(begin, to_answer, to_question, open_end, closed_end)


def _text(template: ChatTemplate, turns: list[Turn], *, is_open: bool) -> str:
    return "".join(span.text for span in template.render(turns, add_generation_prompt=is_open))


def _cut(prompt: str, name: str) -> tuple[Turn, ...] | None:
    """Return the turns of a prompt, or None where it is not this template's."""
    template = get_template(name)
    if template.style == _PLAIN_STYLE:
        return None
    literals = _literals(name)
    for end, is_open in ((literals.open_end, True), (literals.closed_end, False)):
        if not prompt.startswith(literals.begin) or not prompt.endswith(end):
            continue
        stop = len(prompt) - len(end)
        if stop < len(literals.begin):
            continue
        turns = _turns(prompt[len(literals.begin) : stop], literals)
        if turns is not None and _text(template, turns, is_open=is_open) == prompt:
            return tuple(turns)
    return None


def _turns(text: str, literals: _Literals) -> list[Turn] | None:
    """Cut what is between the beginning and the end: question, answer, ..., question."""
    turns: list[Turn] = []
    while len(turns) < _MAX_TURNS:
        question, answer_follows, text = text.partition(literals.to_answer)
        if not question:
            return None
        turns.append(Turn("user", content_of(question)))
        if not answer_follows:
            return turns
        answer, question_follows, text = text.partition(literals.to_question)
        if not answer or not question_follows:
            return None
        turns.append(Turn("assistant", content_of(answer)))
    return None
