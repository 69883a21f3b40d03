"""Text leaves the engine whole: no half characters, no part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.engine.detokenize import IncrementalDetokenizer, StopFilter


class ByteTokenizer:
    """One id a byte, as byte fallback does with characters outside the vocabulary."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if not skip_special_tokens or token < 256).decode(
            "utf-8", "replace"
        )


class WordTokenizer:
    """Like Llama's: the space before a word is part of it, and the first one of a text is dropped."""

    words = ("", " a", " red", "dish", " circle", ".")

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        assert skip_special_tokens
        return "".join(self.words[token] for token in token_ids).removeprefix(" ")


@given(st.text())
def test_pieces_add_up_to_the_whole_text_and_never_show_half_a_character(text: str) -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer())
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_an_unfinished_character_is_shown_as_replaced_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer())
    assert [detokenizer.push(byte) for byte in "é".encode()[:1]] == [""]
    assert detokenizer.flush() == "\ufffd"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_spaces_between_words_survive(tokens: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(WordTokenizer())
    text = "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()
    assert text == WordTokenizer().decode(tokens)


@given(
    st.text(alphabet="ab#</s>", max_size=40),
    st.lists(st.sampled_from(["###", "</s>", "ab", "#<"]), max_size=3),
    st.integers(1, 4),
)
def test_a_stop_string_never_leaks_however_it_is_split(text: str, stop: list[str], width: int) -> None:
    stop_filter = StopFilter(stop)
    pieces = [stop_filter.push(text[index : index + width]) for index in range(0, len(text), width)]
    shown = "".join(pieces) + ("" if stop_filter.is_stopped else stop_filter.flush())
    # Several stop strings may overlap: the one found first while reading ends the text.
    if not stop_filter.is_stopped:
        assert shown == text
    assert text.startswith(shown)
    assert not any(mark in shown for mark in stop)


def test_text_after_the_stop_is_swallowed() -> None:
    stop_filter = StopFilter(["###"])
    assert [stop_filter.push(piece) for piece in ("one #", "#", "# two", "three")] == ["one ", "", "", ""]
    assert stop_filter.is_stopped
    assert stop_filter.flush() == ""


@pytest.mark.parametrize("stop", [[], [""]])
def test_without_stop_strings_everything_passes_at_once(stop: list[str]) -> None:
    assert StopFilter(stop).push("anything") == "anything"
