"""The text fixtures as the tests use them: what the original computed, from `tests/fixtures/eval`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from llava.files import read_json, read_jsonl
from llava.processing.tokenizer import load_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
LABELS = FIXTURES / "eval" / "labels"
CONVERSATION = FIXTURES / "eval" / "conversation"
LLAMA = ("tokenizer_llama_nonlegacy", "tokenizer_llama_legacy")


@cache
def tokenizer_of(name: str, *added: str) -> PreTrainedTokenizerFast:
    """Load a fixture's tokenizer; `added` as the original adds tokens at run time."""
    tokenizer = load_tokenizer(LABELS / name)
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


@cache
def lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL fixture."""
    return [record for _, record in read_jsonl(path)]


@cache
def conversations() -> dict[str, dict[str, Any]]:
    """Return the training conversations by id."""
    return {record["id"]: record for record in read_json(LABELS / "conversations.json")}
