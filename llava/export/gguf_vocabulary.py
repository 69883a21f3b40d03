"""A tokenizer as the keys of a GGUF file: pieces, scores, kinds, special ids.

llama.cpp's "llama" tokenizer joins the pair of pieces with the highest score, leftmost first, as
sentencepiece does. Our tokenizers rank merges (`processing.sentencepiece_model`), so a piece's score is its
first rank, negated. llama.cpp is told to add no leading space (`add_space_prefix` false): where it adds one
is not where the original does, so that whoever writes a prompt, as the chat template here, writes the space.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llava.errors import TokenizerError
from llava.processing.encoding import begins_with_bos

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerFast

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NO_SCORE = -1e9


def check_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise TokenizerError for a tokenizer that llama.cpp's "llama" kind cannot be."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise TokenizerError(
            "the tokenizer is not of LLaMA's kind (sentencepiece BPE with bytes), and GGUF is written for no "
            "other",
            remedy="Convert the language model with llama.cpp's convert_hf_to_gguf.py after `--to hf`.",
        )
    merges = {_pair(merge) for merge in model["merges"]}
    pieces = _mergeable(tokenizer, model["vocab"])
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair not in merges and pair[0] in pieces and pair[1] in pieces:
                raise TokenizerError(
                    f"the tokenizer does not join {pair[0]!r} and {pair[1]!r}, as llama.cpp would",
                    remedy="Only vocabularies of sentencepiece can be written to GGUF.",
                )


def add_vocabulary(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, *, num_rows: int, eos_id: int, pad_id: int | None
) -> None:
    """Add the tokenizer's keys for a model with `num_rows` rows in its token embedding."""
    pieces, scores, kinds = _pieces(tokenizer, num_rows)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if pad_id is not None:
        writer.add_pad_token_id(pad_id)
    writer.add_eos_token_id(eos_id)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _pieces(tokenizer: PreTrainedTokenizerFast, num_rows: int) -> tuple[list[str], list[float], list[int]]:
    """Return text, score and kind of every row."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    by_id = {index: piece for piece, index in tokenizer.get_vocab().items()}
    added = {token["id"]: bool(token["special"]) for token in state["added_tokens"]}
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(state["model"]["merges"]):
        ranks.setdefault("".join(_pair(merge)), rank)
    pieces, scores, kinds = [], [], []
    for index in range(num_rows):
        piece = by_id.get(index, f"[PAD{index}]")
        pieces.append(piece)
        scores.append(-float(ranks[piece]) if piece in ranks else _NO_SCORE)
        if index not in by_id:
            kinds.append(_UNUSED)
        elif piece == state["model"].get("unk_token"):
            kinds.append(_UNKNOWN)
        elif _BYTE_PIECE.fullmatch(piece):
            kinds.append(_BYTE)
        elif index in added:
            kinds.append(_CONTROL if added[index] else _USER_DEFINED)
        else:
            kinds.append(_NORMAL)
    return pieces, scores, kinds


def _mergeable(tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, int]) -> set[str]:
    special = {token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    return {piece for piece in vocabulary if piece not in special and not _BYTE_PIECE.fullmatch(piece)}


def _pair(merge: Any) -> tuple[str, str]:
    """Return the two sides of a merge, which older files write as one text."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right
