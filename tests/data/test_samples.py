"""Records to samples: places and pictures always agree, and a sample that is too long loses whole rounds."""

from __future__ import annotations

import pickle

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.samples import EncodedSample
from llava.errors import ConfigError, DataError, ImageError
from tests.data.samples import NUM_IMAGE_TOKENS, SIZE, encoder, picture, record
from tests.processing.text_cases import LLAMA, tokenizer_of


def text_of(ids: list[int]) -> str:
    """Return what ids say, with <image> for a picture."""
    parts: list[str] = []
    start = 0
    for place in [*(i for i, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX), len(ids)]:
        parts.append(tokenizer_of(LLAMA[0]).decode(ids[start:place], skip_special_tokens=True))
        start = place + 1
    return "<image>".join(parts)


def answers_of(sample: EncodedSample) -> str:
    trained = [label for label in sample.labels if label != IGNORE_INDEX]
    return str(tokenizer_of(LLAMA[0]).decode(trained, skip_special_tokens=True)).strip()


def test_one_picture_moves_to_the_front_of_its_turn() -> None:
    sample = encoder().encode(record("what is <image> here", "a cat", images=["a.png"]))
    assert "USER: <image>\nwhat is  here ASSISTANT: a cat" in text_of(sample.input_ids)
    assert sample.num_tokens == len(sample.input_ids) + NUM_IMAGE_TOKENS - 1
    assert answers_of(sample) == "a cat"


@pytest.mark.parametrize("version", ["v1", "llava_llama_2", "mpt", "v0"])
def test_several_pictures_keep_their_places(version: str) -> None:
    turns = ("<image> before, <image> after: what changed?", "the hat", "and in <image>?", "nothing")
    sample = encoder(version).encode(record(*turns, images=["a.png", "b.png", "c.png"]))
    assert sample.input_ids.count(IMAGE_TOKEN_INDEX) == 3
    text = text_of(sample.input_ids).replace(" ", "")
    assert "<image>before,<image>after:whatchanged?" in text
    assert "andin<image>?" in text
    assert sample.images == ("a.png", "b.png", "c.png")
    assert sample.num_tokens == len(sample.input_ids) + 3 * (NUM_IMAGE_TOKENS - 1)
    assert all(
        label == IGNORE_INDEX for label, i in zip(sample.labels, sample.input_ids, strict=True) if i < 0
    )


def test_tags_go_around_every_picture() -> None:
    sample = encoder("v1_mmtag").encode(record("<image> or <image>?", "one", images=["a", "b"]))
    text = text_of(sample.input_ids).replace(" ", "")
    assert "<Image><image></Image>or<Image><image></Image>?" in text


def test_a_caption_follows_all_its_pictures() -> None:
    sample = encoder("plain").encode(record("<image> and <image>", "two dogs", images=["a", "b"]))
    assert text_of(sample.input_ids).replace(" ", "") == "<image><image>twodogs\n"
    assert answers_of(sample) == "two dogs"


@pytest.mark.parametrize(
    ("texts", "images"),
    [
        (("no place", "x"), ["a"]),
        (("<image> one", "x"), ["a", "b"]),
        (("<image>", "x", "<image>", "y"), ["a"]),
        (("<image> <image> <image>", "x"), ["a", "b"]),
    ],
)
def test_places_and_pictures_that_differ_are_an_error_with_the_place(
    texts: tuple[str, ...], images: list[str]
) -> None:
    with pytest.raises(DataError, match="memory item 1: the sample has") as caught:
        encoder().encode(record(*texts, images=images))
    assert caught.value.where == "memory item 1"


def test_pictures_without_a_tower_are_an_error() -> None:
    with pytest.raises(DataError, match="the model takes none"):
        encoder(has_pictures=False).encode(record("<image>", "x", images=["a"]))
    assert encoder(has_pictures=False).encode(record("a", "x")).num_tokens > 0


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 1"):
        encoder(max_length=1)


def test_a_sample_without_pictures_has_no_zero_picture() -> None:
    example = encoder().example(3, record("hello", "hi"))
    assert example.pixel_values.shape == (0, 3, SIZE, SIZE)
    assert (example.index, example.id, example.source) == (3, "s", "memory")


def test_pictures_come_in_the_order_of_their_places() -> None:
    first, second = picture(1), picture(2)
    both = encoder().example(0, record("<image> <image>", "x", images=[first, second])).pixel_values
    alone = [
        encoder().example(0, record("<image>", "x", images=[one])).pixel_values for one in (first, second)
    ]
    assert both.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(both, torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


def test_a_broken_picture_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        encoder().example(0, record("<image>", "x", images=[b"no picture"]))


def test_whole_rounds_go_from_the_end_and_their_pictures_with_them() -> None:
    texts = ("<image> first", "one " * 20, "second <image>", "two " * 20, "third", "three " * 20)
    whole = encoder().encode(record(*texts, images=["a", "b"]))
    assert (whole.num_dropped_rounds, whole.is_truncated) == (0, False)
    cut = encoder(max_length=whole.num_tokens - 1).encode(record(*texts, images=["a", "b"]))
    assert (cut.num_dropped_rounds, cut.is_truncated) == (1, True)
    assert cut.input_ids == whole.input_ids[: len(cut.input_ids)]
    assert answers_of(cut).split() == ["one"] * 20 + ["two"] * 20
    least = encoder(max_length=cut.num_tokens - 1).encode(record(*texts, images=["a", "b"]))
    assert (least.num_dropped_rounds, least.images) == (2, ("a",))
    assert answers_of(least).split() == ["one"] * 20
    # Several pictures keep their places even where one of them is left.
    assert "<image> first" in text_of(least.input_ids)


def test_of_a_long_conversation_the_most_rounds_that_fit_are_kept() -> None:
    rounds = [text for number in range(40) for text in (f"q{number}", "word " * (number % 7 + 1))]
    limit = 300
    kept = encoder(max_length=limit).encode(record(*rounds))
    one_more = 2 * (40 - kept.num_dropped_rounds) + 2
    assert kept.num_tokens <= limit
    assert encoder().encode(record(*rounds[:one_more])).num_tokens > limit


def test_a_first_answer_that_is_too_long_loses_its_end_and_never_a_picture() -> None:
    one = record("<image> describe", "word " * 100, "more", "x", images=["a"])
    cut = encoder(max_length=90).encode(one)
    assert (cut.num_tokens, cut.num_dropped_rounds, cut.is_truncated) == (90, 1, True)
    assert cut.input_ids.count(IMAGE_TOKEN_INDEX) == 1
    assert "word " * 5 in answers_of(cut)


def test_a_question_that_leaves_no_room_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no room for an answer: the sample takes \d+ positions, and 40"):
        encoder(max_length=40).encode(record("<image> describe", "a cat", images=["a"]))


def test_the_originals_truncation_counts_a_picture_as_one() -> None:
    one = record("<image> describe", "word " * 100, images=["a"])
    whole = encoder().encode(one)
    cut = encoder(max_length=64, truncation="original").encode(one)
    assert cut.input_ids == whole.input_ids[:64]
    assert cut.num_tokens == 64 + NUM_IMAGE_TOKENS - 1
    assert cut.is_truncated
    lost = encoder(max_length=5, truncation="original").encode(one)
    assert (lost.images, lost.num_targets) == ((), 0)


def test_a_sample_brings_its_own_system_text() -> None:
    sample = encoder().encode(record("a", "b", system="Be brief."))
    assert text_of(sample.input_ids).startswith("Be brief. USER: a")
    chatml = encoder("mpt").encode(record("a", "b", system="Be brief."))
    assert "<|im_start|>system\nBe brief.<|im_end|>" in text_of(chatml.input_ids)
    with pytest.raises(DataError, match="control token </s>"):
        encoder().encode(record("a", "b", system="Be </s> brief."))


def test_an_encoder_can_be_sent_to_another_process() -> None:
    one = record("<image> look", "a cat", images=[picture()])
    copy = pickle.loads(pickle.dumps(encoder()))
    assert torch.equal(copy.example(0, one).pixel_values, encoder().example(0, one).pixel_values)
    assert copy.encode(one) == encoder().encode(one)
