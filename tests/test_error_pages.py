"""docs/errors/: a page for every code, made from what the code does now."""

from __future__ import annotations

import re

import pytest

from llava.errors import LlavaError, ReportedError, classes
from llava.serve.frames import error_message
from llava.serve.http.errors import TREATMENTS, error_fields
from llava.serve.protocol import StreamMessage
from llava.serve.web.asking import error_line
from scripts.error_page_texts import WORDS
from scripts.write_error_pages import FOLDER, example, page

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
def test_api_stream_and_web_page_name_the_same_page_which_exists(kind: type[LlavaError]) -> None:
    error = example(kind, WORDS[kind.code])
    named = error_fields(error, "req-12345678")["docs"]
    frame = StreamMessage.from_json(error_message(error, "req-12345678").to_json())
    assert (FOLDER.parents[1] / named).read_text(encoding="utf-8").startswith(f"# `{kind.code}`")
    assert frame.docs == named
    assert f"({named}, request req-12345678)" in error_line(error, "req-12345678")


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("context-length", "docs/errors/context-length.md"),
        ("error-1", "docs/errors/reported.md"),
        ("../../secret", "docs/errors/reported.md"),
    ],
)
def test_a_code_that_somebody_else_gave_names_a_page_that_exists(code: str, named: str) -> None:
    assert ReportedError("it is so", reported_code=code).docs == named


@pytest.mark.parametrize("kind", CLASSES)
def test_the_index_links_every_page_once(kind: type[LlavaError]) -> None:
    index = (FOLDER.parent / "errors.md").read_text(encoding="utf-8")
    assert index.count(f"| [`{kind.code}`](errors/{kind.code}.md) | `{kind.__name__}` |") == 1


def test_no_page_repeats_the_causes_of_another() -> None:
    causes = [cause for words in WORDS.values() for cause, _ in words.causes]
    assert len(set(causes)) == len(causes)
