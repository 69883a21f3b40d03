"""Hold an answer to a format: which ids may come next, told by llguidance from a JSON schema. V vocabulary.

    JsonFormat -> Grammars.constraint (the caller's thread: a bad schema is refused there)
               -> Constraint.allowed, Constraint.advance (the engine's thread, token by token)

Whatever a schema asks for in vain is an error: a keyword that cannot be held, a grammar that grows too large.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llava.engine.request import JsonFormat
from llava.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_OPTIONS_KEY = "x-guidance"
_OPTIONS: dict[str, Any] = {
    # Room for one space, or a line break and indentation. Endless white space would keep every grammar, and
    # small models and high temperatures do not leave it again.
    "whitespace_pattern": r" |\n {0,16}",
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}
"""Of llguidance, in place of those that a schema brings along."""
_MAX_LEXER_STATES = 20_000
"""1 to 2 KiB each, for every answer under way."""
_SILENT = 0
_MAX_COMPLAINT = 200


def guided_schema(wanted: JsonFormat) -> dict[str, Any]:
    """Return the schema of a format with our options in it."""
    return {**(wanted.to_value() or _ANY_OBJECT), _OPTIONS_KEY: _OPTIONS}


def check_format(wanted: JsonFormat) -> None:
    """Raise RequestError for a format that no answer can be held to, whatever the vocabulary."""
    from llguidance import LLTokenizer

    Constraint(_matcher(LLTokenizer("byte"), wanted))


class Grammars:
    """The constraints of one vocabulary, which llguidance is told when the first is asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> None:
        """eos_ids: what ends an answer; nothing else may follow what is complete."""
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._known: LLTokenizer | None = None
        self._lock = threading.Lock()

    def constraint(self, wanted: JsonFormat) -> Constraint:
        """Return what holds one answer to a format; may be called from any thread.

        Raises RequestError for a schema that is none or has keywords that cannot be held, TokenizerError for
        a vocabulary that llguidance does not understand.
        """
        return Constraint(_matcher(self._vocabulary(), wanted))

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._known is None:
                self._known = _read_vocabulary(self._tokenizer, self._eos_ids)
            return self._known


class Constraint:
    """What one answer may go on with."""

    def __init__(self, matcher: LLMatcher) -> None:
        """Compute what an answer may begin with; raises RequestError when there is nothing."""
        self._matcher = matcher
        self._mask: np.ndarray | None = self._next_mask()
        """Of the next id; None once one was taken."""

    def allowed(self, num_ids: int) -> torch.Tensor:
        """Return bool[num_ids]: which ids keep to the format; only those that end it once it is complete.

        Raises RequestError when there is none.
        """
        mask = self._mask if self._mask is not None else self._next_mask()
        allowed = np.zeros(num_ids, dtype=bool)
        known = mask[:num_ids]
        allowed[: len(known)] = known
        if not allowed.any():
            raise _refused("the vocabulary has nothing that an answer could go on with")
        return torch.from_numpy(allowed)

    def advance(self, token: int) -> None:
        """Take the id that was chosen; raises RequestError when the grammar gives up."""
        self._mask = None
        self._matcher.consume_token(token)
        self._raise_error()

    def _next_mask(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        # In an error the mask allows the end of the answer, which would then look complete.
        self._raise_error()
        return np.unpackbits(bits, bitorder="little").astype(bool)

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


def _matcher(vocabulary: LLTokenizer, wanted: JsonFormat) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(guided_schema(wanted)))
    return LLMatcher(vocabulary, grammar, log_level=_SILENT, limits=limits)


def _read_vocabulary(tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> LLTokenizer:
    from llguidance.hf import from_tokenizer

    ends = sorted(token for token in eos_ids if token < len(tokenizer))
    try:
        if not ends:
            raise ValueError("it has nothing that ends an answer")
        return from_tokenizer(tokenizer, eos_token=ends)
    except ValueError as error:
        raise TokenizerError(
            f"answers of this model cannot be held to a format, by reason of its tokenizer: {error}",
            remedy="Ask without a response format, or take a checkpoint with a fast tokenizer.",
        ) from error


def _refused(complaint: str) -> RequestError:
    if "NoExtension" in complaint:
        complaint = "no answer fits it"
    words = " ".join(complaint.removesuffix("<non-verbose/>").split())[:_MAX_COMPLAINT]
    return RequestError(
        f"answers cannot be held to this JSON schema: {words.rstrip('. ')}",
        remedy="Change the schema; docs/api.md says which parts of JSON Schema there are.",
    )
