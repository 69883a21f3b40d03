"""A rendered prompt gives its dialogue back, whichever template rendered it."""

from __future__ import annotations

import pytest

from llava.errors import PromptError
from llava.serve.prompt_reading import first_question, read_prompt
from llava.templates import PICTURE, TEMPLATES, Turn

NAMES = sorted({template.name for template in TEMPLATES.values() if template.style != "PLAIN"})
ONE = (Turn("user", (PICTURE, "\nHow many dogs?")),)
THREE = (*ONE, Turn("assistant", ("Two: one here, one there.",)), Turn("user", ("And cats?",)))


def rendered(name: str, turns: tuple[Turn, ...], *, is_open: bool) -> str:
    spans = TEMPLATES[name].render(turns, add_generation_prompt=is_open)
    return "".join(span.text for span in spans)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("turns", [ONE, THREE])
def test_every_template_is_read_back(name: str, is_open: bool, turns: tuple[Turn, ...]) -> None:
    prompt = rendered(name, turns, is_open=is_open)
    assert read_prompt(prompt).turns == turns
    assert read_prompt(prompt, preferred=name) == (turns, name)


@pytest.mark.parametrize("prompt", ["", "hello", "A USER: hi ASSISTANT:", "S" * 400_000])
def test_a_prompt_of_no_template_is_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="no known template"):
        read_prompt(prompt)
    assert first_question(prompt) == ""


def test_the_first_question_is_the_same_in_later_turns() -> None:
    assert first_question(rendered("vicuna_v1", ONE, is_open=True)) == "\nHow many dogs?"
    assert first_question(rendered("vicuna_v1", THREE, is_open=True)) == "\nHow many dogs?"
