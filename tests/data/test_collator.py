"""Samples to micro-batches: packed and padded say the same, and the original's batches come out exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Batch, Example
from llava.data.collator import collate_packed, collate_padded, expand_rows, pad_rows
from llava.files import read_json
from llava.processing.pixels import clip_rules, imagenet_rules
from llava.processing.supervision import supervise
from tests.data.samples import NUM_IMAGE_TOKENS, SIZE, TRAINING, encoder, training_data, training_tokenizer
from tests.processing.text_cases import LABELS, conversations, lines, tokenizer_of

PICTURE = IMAGE_TOKEN_INDEX


def example(input_ids: list[int], labels: list[int], *, name: str = "s") -> Example:
    pictures = torch.arange(input_ids.count(PICTURE), dtype=torch.float32)
    pixels = pictures[:, None, None, None].expand(-1, 3, 2, 2) + len(input_ids) * 10
    return Example(0, name, f"from-{name}", input_ids, labels, pixels)


TWO = [
    example([1, PICTURE, 5, 6], [1, -100, -100, 6], name="a"),
    example([1, 7, PICTURE, 8, PICTURE, 9], [-100, 7, -100, 8, -100, 9], name="b"),
]


def test_packed_samples_lie_end_to_end() -> None:
    batch = collate_packed(TWO, num_image_tokens=3)
    p = PICTURE
    assert batch.input_ids.tolist() == [[1, p, p, p, 5, 6, 1, 7, p, p, p, 8, p, p, p, 9]]
    x = IGNORE_INDEX
    assert batch.labels.tolist() == [[x, x, x, x, x, 6, x, 7, x, x, x, 8, x, x, x, 9]]
    assert batch.position_ids.tolist() == [[*range(6), *range(10)]]
    assert (batch.segments, batch.attention_mask) == ((6, 10), None)
    assert (batch.num_tokens, batch.num_targets, batch.targets_per_sample) == (16, 4, (1, 3))
    assert (batch.ids, batch.sources) == (("a", "b"), ("from-a", "from-b"))
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [40.0, 60.0, 61.0]


@pytest.mark.parametrize("compat", [False, True])
def test_padded_rows_hold_the_same_as_packed_ones(compat: bool) -> None:
    packed = collate_packed(TWO, num_image_tokens=3)
    padded = collate_padded(TWO, num_image_tokens=3, pad_id=0, compat=compat)
    assert padded.attention_mask is not None
    is_real = torch.arange(padded.input_ids.shape[1]) < torch.tensor([[6], [10]])
    assert torch.equal(padded.input_ids[is_real], packed.input_ids[0])
    assert torch.equal(padded.labels[is_real], packed.labels[0])
    assert torch.equal(padded.position_ids[is_real], packed.position_ids[0])
    assert torch.equal(padded.pixel_values, packed.pixel_values)
    assert (padded.labels[~is_real] == IGNORE_INDEX).all()
    assert torch.equal(padded.attention_mask, is_real)
    for name in ("num_tokens", "num_targets", "targets_per_sample", "ids", "sources"):
        assert getattr(padded, name) == getattr(packed, name)


def test_the_padding_id_inside_a_text_is_masked_only_as_the_original_does() -> None:
    one = [example([1, 0, PICTURE, 5], [-100, -100, -100, 5])]
    ours = collate_padded(one, num_image_tokens=2, pad_id=0)
    assert ours.attention_mask is not None
    assert ours.attention_mask.all()
    original = collate_padded(one, num_image_tokens=2, pad_id=0, compat=True)
    assert original.attention_mask is not None
    assert original.attention_mask.tolist() == [[True, True, False, True, True]]


def test_nothing_gives_batches_without_positions() -> None:
    for batch in (
        collate_packed([], num_image_tokens=3),
        collate_padded([], num_image_tokens=3, pad_id=0),
        collate_padded([], num_image_tokens=3, pad_id=0, compat=True),
    ):
        assert batch.input_ids.shape[1] == batch.labels.shape[1] == 0
        assert (len(batch.pixel_values), batch.num_tokens, batch.num_targets, batch.ids) == (0, 0, 0, ())
        assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64


def test_a_picture_too_many_is_caught() -> None:
    wrong = Example(0, "x", "s", [1, 5], [-100, 5], torch.zeros(1, 3, 2, 2))
    with pytest.raises(AssertionError, match="x"):
        collate_packed([wrong], num_image_tokens=3)


def test_the_originals_collated_batches_are_reproduced() -> None:
    rows = lines(LABELS / "batches.jsonl")
    assert len(rows) == 8
    for row in rows:
        tokenizer = tokenizer_of(row["tokenizer"])
        samples = [
            supervise(
                conversations()[case]["conversations"],
                tokenizer,
                row["version"],
                has_image=conversations()[case]["image"],
                model_max_length=row["model_max_length"],
            )
            for case in row["cases"]
        ]
        got = pad_rows(samples, pad_id=row["pad_token_id"], max_length=row["model_max_length"])
        assert got.input_ids.tolist() == row["input_ids"]
        assert got.labels.tolist() == row["labels"]
        assert got.attention_mask.tolist() == [
            [bool(flag) for flag in mask] for mask in row["attention_mask"]
        ]


def first_batch(run: str) -> tuple[dict[str, Any], list[Example], Batch]:
    """Return what the original's first micro-batch was, and ours of the same samples."""
    expected = read_json(TRAINING / run / "first_batch.json")
    made = encoder(
        "plain" if run == "pretrain" else "v1",
        tokenizer=training_tokenizer(run),
        rules=clip_rules(SIZE) if run == "lora" else imagenet_rules(SIZE, aspect=ASPECT[run]),
        max_length=512,
        truncation="original",
    )
    examples = [made.example(index, training_data(run)[index]) for index in expected["index"]]
    batch = collate_padded(examples, num_image_tokens=NUM_IMAGE_TOKENS, pad_id=0, compat=True)
    return expected, examples, batch


ASPECT: Any = {"pretrain": "square", "finetune": "pad"}
RUNS = ("pretrain", "finetune", "lora")


@pytest.mark.parametrize("run", RUNS)
def test_the_originals_first_batch_is_reproduced(run: str) -> None:
    expected, examples, batch = first_batch(run)
    assert list(batch.ids) == expected["ids"]
    rows = pad_rows([(one.input_ids, one.labels) for one in examples], pad_id=0, max_length=512)
    assert rows.input_ids.tolist() == expected["input_ids"]
    assert rows.labels.tolist() == expected["labels"]
    assert rows.attention_mask.int().tolist() == expected["attention_mask"]
    assert batch.attention_mask is not None
    assert batch.labels.tolist() == expected["expanded_labels"]
    assert batch.attention_mask.int().tolist() == expected["expanded_attention_mask"]
    assert expand_rows(rows, NUM_IMAGE_TOKENS, pad_id=0).labels.tolist() == expected["expanded_labels"]


@pytest.mark.parametrize("run", RUNS)
def test_the_originals_first_pixels_are_reproduced(run: str) -> None:
    expected, examples, _ = first_batch(run)
    sums = (expected["pixel_sum"], expected["pixel_sum_per_channel"], expected["pixel_norm"])
    for one, total, channels, norm in zip(examples, *sums, strict=True):
        pixels = one.pixel_values.double()
        # The original's text samples carry a picture of zeros that is never shown.
        assert len(pixels) == (0 if one.id.startswith("txt") else 1)
        assert pixels.sum().item() == pytest.approx(total, abs=1e-6)
        assert pixels.sum((0, 2, 3)).tolist() == pytest.approx(channels, abs=1e-6)
        assert pixels.norm().item() == pytest.approx(norm, abs=1e-8)


def test_the_recorded_lengths_of_every_sample_are_reproduced() -> None:
    """Tokens before the collator's cut (a long sample's are cut here), and trained labels after it."""
    for run in RUNS:
        made = encoder(
            "plain" if run == "pretrain" else "v1",
            tokenizer=training_tokenizer(run),
            max_length=512,
            truncation="original",
        )
        for step in read_json(TRAINING / run / "order.json")["steps"]:
            for micro in step:
                for place, index in enumerate(micro["index"]):
                    sample = made.encode(training_data(run)[index])
                    assert len(sample.input_ids) == min(512, micro["n_tokens"][place])
                    assert sample.num_targets == micro["n_supervised"][place]
