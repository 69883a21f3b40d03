"""The original's sampler: every recorded order, index for index."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from llava.data.original_order import (
    Variant,
    length_order,
    modality_length_order,
    split_to_even_chunks,
)
from llava.errors import DataError
from llava.files import read_json, read_jsonl
from tests.processing.text_cases import FIXTURES

SAMPLER = FIXTURES / "eval" / "sampler"
ROWS: list[dict[str, Any]] = [row for _, row in read_jsonl(SAMPLER / "sampler.jsonl")]
LENGTHS: dict[str, list[int]] = read_json(SAMPLER / "lengths.json")


def order(row: dict[str, Any], variant: Variant, generator: torch.Generator | None) -> list[int]:
    lengths = [abs(length) if row["abs"] else length for length in LENGTHS[row["lengths"]]]
    shape = {"batch_size": row["batch_size"], "world_size": row["world_size"]}
    if row["group_by_modality"]:
        return modality_length_order(lengths, variant=variant, generator=generator, **shape)
    return length_order(lengths, generator=generator, **shape)


@pytest.fixture(autouse=True)
def _own_random_state() -> Any:
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_fixture_is_whole() -> None:
    assert Counter("error" in row for row in ROWS) == {False: 349, True: 45}
    assert sum("second_epoch" in row for row in ROWS) > 0


def test_every_recorded_order_is_reproduced() -> None:
    for row in ROWS:
        if "error" in row:
            continue
        torch.manual_seed(row["seed"])
        generator = torch.Generator().manual_seed(row["seed"]) if row["generator"] else None
        got = order(row, row["source"], generator)
        name = {key: value for key, value in row.items() if key not in ("indices", "second_epoch")}
        assert got == row["indices"], name
        assert len(got) == row["len"], name
        if "second_epoch" in row:
            assert order(row, row["source"], generator) == row["second_epoch"], name


def test_every_recorded_failure_is_an_error_with_a_remedy() -> None:
    for row in ROWS:
        if "error" in row:
            with pytest.raises(DataError) as caught:
                order(row, row["source"], None)
            assert caught.value.remedy


def test_chunks_are_dealt_as_recorded() -> None:
    cases = read_json(SAMPLER / "meta.json")["split_to_even_chunks"]
    assert len(cases) == 6
    for case in cases:
        got = split_to_even_chunks(case["indices"], case["lengths"], case["num_chunks"])
        assert got == case["chunks"]
