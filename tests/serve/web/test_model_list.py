"""The page's list of models."""

from __future__ import annotations

import asyncio
import random

import pytest

from llava.errors import ConfigError
from llava.serve.web.model_list import ModelList, choose_model, sort_models

ORDER = [
    "InternVL-Chat-V1-10",
    "InternVL-Chat-V1-5-Int8",
    "InternVL-Chat-V1-5",
    "InternVL-Chat-V1-0",
    "vicuna-13b",
    "koala-13b",
    "llava-v1.5-7b",
    "llava-v1.5-13b",
    "tiny",
]


def test_the_order_is_always_the_same() -> None:
    for seed in range(5):
        mixed = ORDER * 2
        random.Random(seed).shuffle(mixed)
        assert sort_models(mixed) == ORDER


def loaded(lists: list[list[str]], mode: str) -> list[list[str]]:
    """Return what three page loads show, while the workers say one list after the other."""

    async def fetch() -> list[str]:
        return lists.pop(0)

    async def load() -> list[list[str]]:
        return [await models.on_page_load() for _ in range(3)]

    models = ModelList(fetch, mode=mode)
    return asyncio.run(load())


def test_once_keeps_the_first_list_that_names_a_model() -> None:
    assert loaded([[], ["a"], ["b"]], "once") == [[], ["a"], ["a"]]


def test_reload_asks_whenever_a_page_is_loaded() -> None:
    assert loaded([["a"], ["b"], []], "reload") == [["a"], ["b"], []]


def test_the_model_of_the_address_comes_before_the_selected_one() -> None:
    assert choose_model(["a", "b", "c"], wanted="b", current="c") == "b"
    assert choose_model(["a", "b", "c"], wanted="<script>", current="c") == "c"
    assert choose_model(["a"], wanted="x") == "a"
    assert choose_model([]) is None


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="once, reload"):
        loaded([], "never")
