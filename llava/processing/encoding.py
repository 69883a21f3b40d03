"""Spans or prompts -> token ids, as the original's slow tokenizer gives them.

Between `rendering` (text in spans) and the model (ids). Inherited: `tokenizer_image_token` of the original's
`llava/mm_utils.py`, and `LlamaTokenizer.tokenize` of transformers 4.37.2 with its `legacy` flag: the text is
cut at special tokens, and a run of text gets a leading space (legacy: every run; otherwise the first one).
Control tokens come only from spans the template wrote: content that spells `</s>` stays text.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload
from weakref import WeakKeyDictionary

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.errors import TokenizerError, UsageError
from llava.processing.sentencepiece_model import WORD_START
from llava.rendering import Span

if TYPE_CHECKING:
    from tokenizers import Encoding


class Encoded(NamedTuple):
    """Token ids with one -200 per picture, and for each whether the loss covers it."""

    input_ids: list[int]
    is_trained: list[bool]


def encode_spans(spans: Iterable[Span], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Encode spans, beginning with `<s>` where the tokenizer adds one.

    For text that spells no control token the ids are those of `tokenizer_image_token` on the joined text.
    A token is trained when any of its characters is.
    """
    codec = _codec(tokenizer)
    ids = list(codec.prefix)
    is_trained = [False] * len(ids)
    for index, chunk in enumerate(_chunks(spans)):
        if index:
            ids.append(IMAGE_TOKEN_INDEX)
            is_trained.append(False)
        encoded = codec.encode_chunk(chunk)
        ids += encoded.input_ids
        is_trained += encoded.is_trained
    return Encoded(ids, is_trained)


@overload
def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = ...,
    return_tensors: None = ...,
    *,
    fills_empty_chunks: bool = ...,
) -> list[int]: ...
@overload
def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = ...,
    *,
    return_tensors: Literal["pt"],
    fills_empty_chunks: bool = ...,
) -> torch.Tensor: ...
@overload
def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int,
    return_tensors: Literal["pt"],
    *,
    fills_empty_chunks: bool = ...,
) -> torch.Tensor: ...
def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
    *,
    fills_empty_chunks: bool = True,
) -> list[int] | torch.Tensor:
    """Encode a rendered prompt: each `<image>` becomes `image_token_index`, special tokens become their ids.

    return_tensors: "pt" for int64[L], None for a list.
    fills_empty_chunks: give an empty chunk the begin-of-sequence id even where the tokenizer adds none
        (InternVL's version does, LLaVA's does not; no difference for LLaMA's tokenizers).
    Raises UsageError for another `return_tensors`.
    """
    if return_tensors not in (None, "pt"):
        raise UsageError(f"return_tensors is {return_tensors!r}", remedy="Use 'pt' or None.")
    chunks = [_encode_text(text, tokenizer) for text in prompt.split(DEFAULT_IMAGE_TOKEN)]
    bos = tokenizer.bos_token_id
    if fills_empty_chunks and bos is not None:
        chunks = [chunk or [bos] for chunk in chunks]
    num_dropped = int(bool(chunks[0]) and chunks[0][0] == bos)
    ids = chunks[0]
    for chunk in chunks[1:]:
        ids = [*ids, image_token_index, *chunk[num_dropped:]]
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)


def _encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode a text without pictures as `tokenizer(text).input_ids` of the original."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return list(tokenizer(text).input_ids)
    codec = _codec(tokenizer)
    return [*codec.prefix, *codec.encode_chunk([Span(text, "control")]).input_ids]


def _chunks(spans: Iterable[Span]) -> list[list[Span]]:
    """Split spans at the pictures."""
    chunks: list[list[Span]] = [[]]
    for span in spans:
        if span.kind == "image":
            chunks.append([])
        else:
            chunks[-1].append(span)
    return chunks


@dataclass
class _Run:
    """Text between control tokens, with the trained flag of every character."""

    text: str = ""
    flags: tuple[bool, ...] = ()


class _Control(NamedTuple):
    """A control token written by a template."""

    token: AddedToken
    token_id: int
    is_trained: bool


@dataclass(frozen=True)
class _Codec:
    """A tokenizer taken apart: its text model without control tokens, and what stands around text."""

    bare: Tokenizer
    prefix: tuple[int, ...]
    """Ids in front of every sequence: `<s>` or nothing."""
    is_sentencepiece: bool
    legacy: bool
    controls: dict[str, tuple[int, AddedToken]]

    def encode_chunk(self, spans: Sequence[Span]) -> Encoded:
        """Encode the spans between two pictures, without begin-of-sequence id."""
        ids: list[int] = []
        is_trained: list[bool] = []
        for index, part in enumerate(self._parts(spans)):
            if isinstance(part, _Control):
                if index == 0 and self._leaves_word_start(part.token):
                    ids += self.bare.encode(WORD_START, add_special_tokens=False).ids
                    is_trained += [False] * (len(ids) - len(is_trained))
                ids.append(part.token_id)
                is_trained.append(part.is_trained)
            elif part.text:
                has_space = self.is_sentencepiece and (self.legacy or index == 0)
                encoded = self._encode_run(part, has_space=has_space)
                ids += encoded.input_ids
                is_trained += encoded.is_trained
        return Encoded(ids, is_trained)

    def _leaves_word_start(self, first: AddedToken) -> bool:
        """Whether the non-legacy tokenizer leaves its leading space alone in front of a chunk's first token.

        It removes it before special tokens, but not before tokens that were merely added, as `<im_end>`.
        """
        return self.is_sentencepiece and not self.legacy and not first.special

    def _encode_run(self, run: _Run, *, has_space: bool) -> Encoded:
        text, flags = run.text, run.flags
        if has_space:
            text, flags = WORD_START + text, (flags[0], *flags)
        encoding: Encoding = self.bare.encode(text, add_special_tokens=False)
        if True not in flags:
            return Encoded(encoding.ids, [False] * len(encoding.ids))
        trained = [any(flags[start : max(end, start + 1)]) for start, end in encoding.offsets]
        return Encoded(encoding.ids, trained)

    def _parts(self, spans: Sequence[Span]) -> list[_Run | _Control]:
        """Join text across spans and cut it at control tokens, which swallow spaces where they are set to."""
        parts: list[_Run | _Control] = []
        for _, group in itertools.groupby(self._pieces(spans), lambda piece: isinstance(piece, _Control)):
            pieces = list(group)
            runs = [piece for piece in pieces if isinstance(piece, _Run)]
            # All at once: one after the other, a prompt of 10^5 parts took half a minute.
            flags = tuple(itertools.chain.from_iterable(run.flags for run in runs))
            parts += [_Run("".join(run.text for run in runs), flags)] if runs else pieces
        for before, after in itertools.pairwise(parts):
            if isinstance(before, _Run) and isinstance(after, _Control) and after.token.lstrip:
                before.text = before.text.rstrip()
                before.flags = before.flags[: len(before.text)]
            if isinstance(before, _Control) and isinstance(after, _Run) and before.token.rstrip:
                after.text = after.text.lstrip()
                after.flags = after.flags[len(after.flags) - len(after.text) :]
        return parts

    def _pieces(self, spans: Sequence[Span]) -> Iterator[_Run | _Control]:
        """Cut control spans at the control tokens they spell; text spans stay whole."""
        contents = sorted(self.controls, key=len, reverse=True)
        pattern = "|".join(re.escape(content) for content in contents)
        for text, kind, is_trained in spans:
            # Text from a terminal may hold halves of surrogate pairs, which no tokenizer can take.
            text = text.encode("utf-8", "replace").decode("utf-8")
            pieces = re.split(f"({pattern})", text) if kind == "control" and contents else [text]
            for piece in pieces:
                if kind == "control" and piece in self.controls:
                    token_id, token = self.controls[piece]
                    yield _Control(token, token_id, is_trained)
                elif piece:
                    yield _Run(piece, (is_trained,) * len(piece))


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its begin-of-sequence token in front of a text."""
    return bool(_codec(tokenizer).prefix)


def is_nonlegacy_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether only the first run of a text gets a leading space (LLaMA's tokenizer with `legacy` False)."""
    codec = _codec(tokenizer)
    return codec.is_sentencepiece and not codec.legacy


class _Base(NamedTuple):
    """The part of a codec that does not change when tokens are added."""

    bare: Tokenizer
    prefix: tuple[int, ...]
    is_sentencepiece: bool


_bases: WeakKeyDictionary[Any, _Base] = WeakKeyDictionary()


def _codec(tokenizer: PreTrainedTokenizerBase) -> _Codec:
    """Take a tokenizer apart; the costly half is kept for as long as the tokenizer lives."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(
            f"a tokenizer of class {type(tokenizer).__name__} cannot be taken apart",
            remedy="Load it with llava.processing.tokenizer.load_tokenizer.",
        )
    if tokenizer not in _bases:
        _bases[tokenizer] = _base(tokenizer)
    base = _bases[tokenizer]
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    controls = {token.content: (token_id, token) for token_id, token in added.items() if is_control(token)}
    # `legacy` is written by load_tokenizer and save_tokenizer; a tokenizer without it is not LLaMA's.
    return _Codec(*base, legacy=bool(tokenizer.init_kwargs.get("legacy", True)), controls=controls)


def is_control(token: AddedToken) -> bool:
    """Whether content may not produce this added token; runs of spaces (GPT-NeoX has such) it may."""
    return token.special or token.content.startswith("<")


def _base(tokenizer: PreTrainedTokenizerFast) -> _Base:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    is_sentencepiece = bool(state["model"].get("byte_fallback")) or WORD_START in state["model"]["vocab"]
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    state["added_tokens"] = [
        entry
        for entry in state["added_tokens"]
        if not is_control(added[entry["id"]]) and not is_sentencepiece
    ]
    state["post_processor"] = None
    if is_sentencepiece:
        state["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}
        state["pre_tokenizer"] = None
    first = tokenizer("").input_ids[:1]
    prefix = first if first == [tokenizer.bos_token_id] else []
    return _Base(Tokenizer.from_str(json.dumps(state)), tuple(prefix), is_sentencepiece)
