"""docs/errors/: a page for every code, made from what the code does now."""

from __future__ import annotations

import re

import pytest

from llava.errors import LlavaError
from llava.serve.http.errors import TREATMENTS
from scripts.error_page_texts import WORDS
from scripts.write_error_pages import FOLDER, classes, page

CLASSES = classes()
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}


def test_every_class_has_its_page_and_every_page_its_class() -> None:
    codes = {kind.code for kind in CLASSES}
    assert set(PAGES) == codes == set(WORDS)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_page_says_what_the_code_does(kind: type[LlavaError]) -> None:
    assert PAGES[kind.code] == page(kind), "run: python -m scripts.write_error_pages"


@pytest.mark.parametrize("kind", TREATMENTS)
def test_the_status_of_a_page_is_the_one_that_is_answered(kind: type[LlavaError]) -> None:
    stated = re.search(r"answers with status (\d+)", PAGES[kind.code])
    assert stated is not None
    assert int(stated[1]) == TREATMENTS[kind].status


@pytest.mark.parametrize("kind", CLASSES)
def test_the_index_links_every_page_once(kind: type[LlavaError]) -> None:
    index = (FOLDER.parent / "errors.md").read_text(encoding="utf-8")
    assert index.count(f"| [`{kind.code}`](errors/{kind.code}.md) | `{kind.__name__}` |") == 1


def test_no_page_repeats_the_causes_of_another() -> None:
    causes = [cause for words in WORDS.values() for cause, _ in words.causes]
    assert len(set(causes)) == len(causes)
