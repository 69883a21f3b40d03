"""`tokenizer.model` -> a `tokenizers` model with exactly its pieces and merges.

Used by `tokenizer.load_tokenizer`. The files of the LLaMA family hold pieces with scores; sentencepiece joins
the pair whose piece has the highest score, leftmost first. transformers' own conversion ranks merges by
vocabulary id instead, which joins LLaMA's runs of spaces too early and so gives other ids than the original's
slow tokenizer; here merges are ranked by score, and the result is compared with sentencepiece before use.
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, normalizers

from llava.errors import TokenizerError

WORD_START = "\u2581"
"""sentencepiece's visible space."""

_PROBES = (
    "The quick brown fox, 3.14 times; USER: what's up?\nASSISTANT: It's 'fine'.",
    " leading  double   triple    spaces \t tab\r\n\n\nlines ",
    "图中的女孩在做什么？ 两只🐱🐱。 naïve café Ünïcödé — “quotes” … ①ﬁ１Å",  # noqa: RUF001
    "</s><s><unk><0x0A>[INST] <image> ### <|im_start|>",
    "def f(x):\n        return {'a': [1, 2, 3]}  # ok\n" + " " * 61 + "x",
)


def read_sentencepiece(path: Path) -> Tokenizer:
    """Return pieces and merges of a sentencepiece BPE file, without special tokens or a leading space.

    Raises TokenizerError when the file is missing, corrupt, or of a kind that cannot be converted exactly.
    """
    processor = _open(path)
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    normal = {
        piece: processor.get_score(index)
        for index, piece in enumerate(pieces)
        if not (processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index))
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=_merges(normal),
            unk_token=pieces[processor.unk_id()] if processor.unk_id() >= 0 else None,
            fuse_unk=True,
            byte_fallback=any(processor.is_byte(index) for index in range(len(pieces))),
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", WORD_START)
    _check(tokenizer, processor, path)
    return tokenizer


def _open(path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        content = path.read_bytes()
        processor = sentencepiece.SentencePieceProcessor()
        if not content or not processor.load_from_serialized_proto(content):
            raise TokenizerError(f"{path} is not a sentencepiece model", remedy="Copy the file again.")
    except FileNotFoundError:
        raise TokenizerError(f"{path} does not exist", remedy="Copy it from the original model.") from None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(
            f"{path} cannot be read as a sentencepiece model: {reason}",
            remedy="The file is truncated or of another kind; copy it again.",
        ) from error
    return processor


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, the pair to be merged first in front."""
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append((-score, _tie(piece), len(merges), (left, right)))
    return [pair for *_, pair in sorted(merges)]


def _tie(piece: str) -> int:
    """Order pieces of equal score, in LLaMA the runs of spaces: doublings first, shortest first.

    sentencepiece takes ties from the left, which fills the longest run before it starts the next; merging by
    rank gives the same pieces when 2, 4, 8 and 16 spaces come before the lengths between.
    """
    length = len(piece)
    is_doubling = length & (length - 1) == 0
    return length if is_doubling else length + 64


def _check(tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Raise TokenizerError unless the conversion gives sentencepiece's own ids."""
    for probe in _PROBES:
        if tokenizer.encode(WORD_START + probe).ids != processor.encode(probe):
            raise TokenizerError(
                f"{path} is a sentencepiece model that cannot be converted exactly (not LLaMA's kind: BPE, "
                "identity normalisation, a leading space)",
                remedy="Give the folder a tokenizer.json of this model instead.",
            )
