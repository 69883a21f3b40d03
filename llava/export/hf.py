"""Write a checkpoint for plain transformers: `LlavaForConditionalGeneration` and `LlavaProcessor`.

CLIP models get the layout of the llava-hf checkpoints, which serving engines know; InternViT models the same
class over `InternVLVisionModel`, which transformers alone runs. Two differences to the source: the vocabulary
has a row for `<image>` (and `<pad>`, and up to a multiple of 64, as in llava-hf), and the tower has only the
layers up to the one that is tapped, so that the tap is the last. The new rows are the mean of the others:
their logit is the mean of all logits, which is never the largest; sampling is kept from them by
`suppress_tokens`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import LlavaConfig as NativeLlavaConfig
from transformers import PreTrainedTokenizerFast

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import ConfigError
from llava.files import write_json
from llava.model.conventions import generation_config
from llava.model.filling import add_rows
from llava.model.mapping import LANGUAGE, PROJECTOR, TOWER
from llava.model.weights import write_weights
from llava.processing.tokenizer import save_tokenizer

if TYPE_CHECKING:
    from llava.export.source import Source

_ROW_MULTIPLE = 64
_PAD_TOKEN = "<pad>"
_LINEARS = {"0": "linear_1", "2": "linear_2"}
_VOCABULARY = (f"{LANGUAGE}embed_tokens.weight", "lm_head.weight")


class Vocabulary(NamedTuple):
    """The source's tokenizer with the tokens that transformers' LLaVA needs."""

    tokenizer: PreTrainedTokenizerFast
    image_id: int
    pad_id: int
    num_rows: int
    """Rows of the embedding, a multiple of 64."""
    first_new: int
    """The first row behind those of the source's tokens."""


def check_source(source: Source) -> None:
    """Raise ConfigError for a model that transformers' own LLaVA cannot be."""
    if source.config.mm_projector_type not in ("mlp2x_gelu", "linear"):
        raise ConfigError(
            f"mm_projector_type is {source.config.mm_projector_type!r}, and transformers' LLaVA has "
            "'mlp2x_gelu' and 'linear' alone of them",
            remedy="Use --to legacy or --to merged.",
        )
    text_type = source.config.text_config.model_type
    if text_type == "mpt":
        raise ConfigError(
            "the language model is of type 'mpt', and transformers' LLaVA cannot hold it",
            remedy="Use --to legacy or --to merged.",
        )


def write_hf(source: Source, folder: Path, *, dtype: torch.dtype) -> None:
    """Write config, weights in `dtype`, tokenizer with chat template, and processor into `folder`."""
    vocabulary = extend_vocabulary(source)
    config = hf_config(source, vocabulary, dtype)
    write_weights(folder, _tensors(source, vocabulary, dtype))
    config.save_pretrained(folder)
    generation = generation_config(source.config, source.tokenizer)
    generation.pad_token_id = vocabulary.pad_id
    generation.suppress_tokens = sorted(
        {vocabulary.image_id, *range(vocabulary.first_new, vocabulary.num_rows)}
    )
    generation.save_pretrained(folder)
    save_tokenizer(
        vocabulary.tokenizer,
        folder,
        template=source.template,
        with_image_token=True,
        im_start_end=source.config.mm_use_im_start_end,
    )
    preprocessor = source.rules.to_preprocessor_config() | {"processor_class": "LlavaProcessor"}
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "processor_config.json", _processor_config(source))


def extend_vocabulary(source: Source) -> Vocabulary:
    """Add `<image>`, and `<pad>` where there is no padding token, to a copy of the tokenizer."""
    wanted = [DEFAULT_IMAGE_TOKEN, *([] if source.tokenizer.pad_token else [_PAD_TOKEN])]
    tokenizer = _with_tokens(source.tokenizer, wanted)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _PAD_TOKEN
    num_needed = max(source.config.text_config.vocab_size, max(tokenizer.get_vocab().values()) + 1)
    return Vocabulary(
        tokenizer=tokenizer,
        image_id=tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
        pad_id=tokenizer.pad_token_id,
        num_rows=-(-num_needed // _ROW_MULTIPLE) * _ROW_MULTIPLE,
        first_new=max(source.tokenizer.get_vocab().values()) + 1,
    )


def _with_tokens(tokenizer: PreTrainedTokenizerFast, contents: list[str]) -> PreTrainedTokenizerFast:
    """Return a copy with further special tokens, each with the smallest id that is free.

    The tokenizers library counts instead, and where an id is free in the middle (`<image>` of a llava-hf
    checkpoint, which is not kept in memory) it would give one that is taken.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    vocabulary |= tokenizer.get_vocab()
    for content in contents:
        taken = set(vocabulary.values())
        vocabulary.setdefault(content, next(index for index in count() if index not in taken))
    backend = Tokenizer.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(content, normalized=False, special=True) for content in contents])
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        legacy=tokenizer.init_kwargs.get("legacy", True),
        model_max_length=tokenizer.model_max_length,
        **named,
    )


def hf_config(source: Source, vocabulary: Vocabulary, dtype: torch.dtype) -> NativeLlavaConfig:
    """Return the configuration of transformers' own class."""
    config = source.config
    text = copy.deepcopy(config.text_config)
    text.vocab_size = vocabulary.num_rows
    text.dtype = dtype
    is_linear = config.mm_projector_type == "linear"
    native = NativeLlavaConfig(
        text_config=text,
        vision_config=copy.deepcopy(config.vision_config),
        image_token_index=vocabulary.image_id,
        image_seq_length=config.image_seq_length,
        projector_hidden_act="linear" if is_linear else "gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        pad_token_id=vocabulary.pad_id,
    )
    native.architectures = ["LlavaForConditionalGeneration"]
    native.dtype = dtype
    return native


def _tensors(
    source: Source, vocabulary: Vocabulary, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor under its name in a llava-hf checkpoint."""
    is_clip = source.config.vision_config.model_type == "clip_vision_model"
    for name, tensor in source.tensors(dtype):
        value = add_rows(tensor, vocabulary.num_rows).contiguous() if name in _VOCABULARY else tensor
        yield _hf_name(name, is_clip=is_clip), value
    if source.config.mm_projector_type == "linear":
        # transformers' projector has two layers: the second is the identity.
        size = source.config.text_config.hidden_size
        yield "multi_modal_projector.linear_2.weight", torch.eye(size, dtype=dtype)
        yield "multi_modal_projector.linear_2.bias", torch.zeros(size, dtype=dtype)


def _hf_name(name: str, *, is_clip: bool) -> str:
    if name.startswith(LANGUAGE):
        return f"language_model.model.{name[len(LANGUAGE) :]}"
    if name.startswith(TOWER):
        return ("vision_tower.vision_model." if is_clip else "vision_tower.") + name[len(TOWER) :]
    if name.startswith(PROJECTOR):
        index, _, leaf = re.sub(r"^(weight|bias)$", r"0.\1", name[len(PROJECTOR) :]).partition(".")
        return f"multi_modal_projector.{_LINEARS[index]}.{leaf}"
    return f"language_model.{name}"


def _processor_config(source: Source) -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": DEFAULT_IMAGE_TOKEN,
        "patch_size": source.config.tower["patch_size"] if source.config.tower else None,
        "vision_feature_select_strategy": source.config.vision_feature_select_strategy,
        # The class token, which the processor takes away again where the strategy leaves it out.
        "num_additional_image_tokens": 1,
    }
