"""Label masks: the original's wherever it kept the sample, the right ones where it threw it away."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import ConfigError, DataError
from llava.processing.supervision import Supervised, supervise
from llava.templates import get_template
from tests.processing.text_cases import LABELS, LLAMA, conversations, lines, tokenizer_of

ROWS = lines(LABELS / "labels.jsonl")
KEPT = [row for row in ROWS if "error" not in row and not row.get("mismatch_warning")]
THROWN_AWAY = [row for row in ROWS if row.get("mismatch_warning")]
REFUSED = [row for row in ROWS if "error" in row]


def supervised(row: dict[str, Any], *, limit: int | None = None) -> Supervised:
    sample = conversations()[row["case"]]
    return supervise(
        sample["conversations"],
        tokenizer_of(row["tokenizer"], *row.get("added_special_tokens", [])),
        row["version"],
        has_image=sample["image"],
        model_max_length=limit or row["model_max_length"],
        im_start_end=row["mm_use_im_start_end"],
    )


def recorded_labels(row: dict[str, Any]) -> list[int]:
    labels = [IGNORE_INDEX] * len(row["input_ids"])
    for start, stop in row["label_spans"]:
        labels[start:stop] = row["input_ids"][start:stop]
    return labels


def trained(labels: list[int]) -> list[int]:
    return [label for label in labels if label != IGNORE_INDEX]


def name_of(row: dict[str, Any]) -> tuple[str, str, int, bool, str]:
    tokenizer = row["tokenizer"].removeprefix("tokenizer_")
    return tokenizer, row["version"], row["model_max_length"], row["mm_use_im_start_end"], row["case"]


def test_the_fixture_is_whole() -> None:
    assert (len(KEPT), len(THROWN_AWAY), len(REFUSED)) == (549, 54, 69)


def test_ids_are_the_originals_in_every_row() -> None:
    wrong = [name_of(row) for row in KEPT + THROWN_AWAY if supervised(row).input_ids != row["input_ids"]]
    assert wrong == []


def test_labels_are_the_originals_wherever_it_kept_the_sample() -> None:
    wrong = [name_of(row) for row in KEPT if supervised(row).labels != recorded_labels(row)]
    assert wrong == []


def expected_text(row: dict[str, Any]) -> str:
    """Return answers and their end tokens; an empty answer is an open turn and has none."""
    end = "</s>" if get_template(row["version"]).sep2 else get_template(row["version"]).sep
    turns = conversations()[row["case"]]["conversations"]
    return "".join(turn["value"] + end for turn in turns if turn["from"] == "gpt" and turn["value"])


def test_where_the_original_threw_a_sample_away_answers_and_end_tokens_are_trained() -> None:
    """D01, at full length: spaces aside, for the tokenizer joins the one before an answer."""
    for row in THROWN_AWAY:
        labels = supervised(row, limit=2048).labels
        tokenizer = tokenizer_of(row["tokenizer"], *row.get("added_special_tokens", []))
        # Where <|im_end|> is no token, LLaMA's "><" joins it to the next turn.
        text = tokenizer.decode(trained(labels)).replace("|><", "|>")
        assert text.replace(" ", "") == expected_text(row).replace(" ", ""), name_of(row)
        cut = supervised(row).labels
        assert cut == labels[: len(cut)]


def test_d01_is_exactly_these_rows() -> None:
    """The deliberate difference of docs/deviations.md, counted: in no other row do our labels differ."""
    different = [row for row in ROWS if "error" not in row and supervised(row).labels != recorded_labels(row)]
    assert all(row["mismatch_warning"] for row in different)
    assert Counter((row["version"], row["case"]) for row in different) == {
        # An answer that spells the marks the original splits at.
        ("v1", "contains_role_words"): 4,
        ("v1_mmtag", "contains_role_words"): 2,
        ("llava_v1", "contains_role_words"): 2,
        ("llama_2", "contains_inst"): 2,
        ("llava_llama_2", "contains_inst"): 2,
        ("mistral_instruct", "contains_inst"): 1,
        # An empty answer among others.
        ("mpt", "empty_answer_middle"): 2,
        ("Hermes-2", "empty_answer_middle"): 3,
        ("internlm2-chat", "empty_answer_middle"): 2,
        ("phi3-chat", "empty_answer_middle"): 1,
        # ChatML on LLaMA's tokenizer, where the original masks everything.
        ("mpt", "img_first_single"): 1,
        ("mpt", "text_multi"): 1,
        ("Hermes-2", "img_first_single"): 2,
        ("Hermes-2", "text_multi"): 2,
        ("internlm2-chat", "img_first_single"): 1,
        ("internlm2-chat", "text_multi"): 1,
    }
    # The others it threw away hold nothing to train: an only answer that is empty, or one cut off.
    empty = [row for row in THROWN_AWAY if row not in different]
    assert {(row["case"], row["model_max_length"]) for row in empty if row["case"] != "empty_answer"} <= {
        ("contains_role_words", 64),
        ("contains_inst", 64),
    }
    assert all(not trained(supervised(row).labels) for row in empty)


def test_what_the_original_refuses_is_a_clear_error() -> None:
    """D05."""
    for row in REFUSED:
        assert row["error"] == "AssertionError"
        with pytest.raises(DataError) as caught:
            supervised(row)
        assert caught.value.remedy


def answer_of(turns: list[dict[str, str]], version: str, **options: Any) -> str:
    tokenizer = tokenizer_of(LLAMA[0])
    labels = supervise(turns, tokenizer, version, model_max_length=2048, **options).labels
    return str(tokenizer.decode(trained(labels)))


def dialogue(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize("version", ["v1", "llava_llama_2", "mistral_instruct"])
@pytest.mark.parametrize("answer", ["5", "你好", "a</s>b", "x ASSISTANT: y", "[/INST] z", "<image>"])
def test_an_answer_is_trained_with_its_end_whatever_it_spells(version: str, answer: str) -> None:
    text = answer_of(dialogue("Q", answer, "again", "ok"), version, has_image=False)
    assert text.replace(" ", "") == f"{answer}</s>ok</s>".replace(" ", "")


def test_every_turn_with_a_picture_has_it_on_its_first_line() -> None:
    turns = dialogue("look <image> here <image>", "one", "and\n<image>", "two")
    ids = supervise(turns, tokenizer_of(LLAMA[0]), "v1", has_image=True, model_max_length=2048).input_ids
    same = supervise(
        dialogue("<image>\nlook  here", "one", "<image>\nand", "two"),
        tokenizer_of(LLAMA[0]),
        get_template("v1"),
        has_image=True,
        model_max_length=2048,
    ).input_ids
    assert ids == same
    assert ids.count(IMAGE_TOKEN_INDEX) == 2


@pytest.mark.parametrize(
    "turn", [{"from": "system", "value": "x"}, {"from": "gpt"}, {"value": "x"}, {"from": "human", "value": 3}]
)
def test_a_turn_that_is_none_is_an_error(turn: Any) -> None:
    with pytest.raises(DataError, match="Use from 'human' or 'gpt'"):
        answer_of([turn], "v1", has_image=False)


def test_an_unknown_version_is_an_error() -> None:
    with pytest.raises(ConfigError, match="v9"):
        answer_of(dialogue("a", "b"), "v9", has_image=False)
