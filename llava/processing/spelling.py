"""Token ids -> a text from which a bare sentencepiece tokenizer makes the same ids again.

For engines that take a prompt as text only, as llama.cpp's server with pictures, and whose tokenizer adds no
space of its own (GGUF files of `export.gguf` say so): the spaces that our tokenizer put in front are written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llava.constants import IMAGE_TOKEN_INDEX
from llava.processing.sentencepiece_model import WORD_START

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def spell(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, picture: str) -> str:
    """Return the pieces of `ids` joined, without a begin-of-sequence id in front.

    ids: one -200 for each picture, which becomes `picture`. Content that spells a control token (`</s>`)
    cannot be told from the token itself in a text.
    """
    is_bos_first = bool(ids) and ids[0] == tokenizer.bos_token_id
    parts: list[bytes] = []
    for index in ids[1:] if is_bos_first else ids:
        piece = picture if index == IMAGE_TOKEN_INDEX else str(tokenizer.convert_ids_to_tokens(index))
        byte = _BYTE_PIECE.fullmatch(piece)
        text = piece.replace(WORD_START, " ")
        parts.append(text.encode() if byte is None else bytes([int(byte[1], 16)]))
    return b"".join(parts).decode("utf-8", "replace")
