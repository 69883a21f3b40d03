"""Write a checkpoint as the original's own programs read it.

Its weight names in safetensors shards (which transformers 4.37 reads as it reads `pytorch_model-*.bin`),
config.json with `mm_*` keys, and the files of its slow tokenizer. The original loads the vision tower from
`mm_vision_tower` whatever the checkpoint holds; where that is a folder here its absolute path is written, and
a tower that is nowhere but inside the source (our own format, llava-hf) gets a folder of its own beside
the weights. Its layers above the tap are gone, so that the tap is then -1.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
import torch

from llava.errors import ConfigError, TokenizerError
from llava.files import write_json
from llava.model.config import original_config
from llava.model.conventions import generation_config
from llava.model.locating import tower_folder
from llava.model.mapping import TOWER, TOWER_PREFIX, original_tensors
from llava.model.saving import family_of
from llava.model.weights import write_weights
from llava.processing.encoding import begins_with_bos

if TYPE_CHECKING:
    from llava.export.source import Source

_SLOW = ("llama", "mistral")
"""Language models whose tokenizer the original reads from tokenizer.model."""
_ATTENTION = re.compile(re.escape(TOWER) + r"encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(\w+)")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def check_source(source: Source) -> None:
    """Raise ConfigError for a model that the original's code has no class for."""
    text_type = source.config.text_config.model_type
    if text_type not in _SLOW:
        raise ConfigError(
            f"the language model is of type {text_type!r}, and only LLaMA and Mistral are written for the "
            "original",
            remedy="Use --to merged, or --to hf.",
        )
    if source.tokenizer_model is None:
        raise TokenizerError(
            f"{source.checkpoint.path} has no tokenizer.model, which the original's loader needs",
            remedy="Copy tokenizer.model of the language model into the checkpoint.",
        )


def write_legacy(source: Source, folder: Path, *, dtype: torch.dtype, final: Path) -> None:
    """Write everything into `folder`, which is to be moved to `final`."""
    own_tower = _has_no_tower_elsewhere(source)
    size = source.config.vision_config.image_size
    size = size if isinstance(size, int) else size[0]
    is_clip = family_of(source.config) == "clip"
    # The original recognises towers by their folder's name.
    name = f"clip-vit-{size}px" if is_clip else f"InternViT-6B-{size}px"
    config = original_config(source.config, dtype=str(dtype).removeprefix("torch."))
    if own_tower:
        config |= {"mm_vision_tower": str(final.resolve() / name), "mm_vision_select_layer": -1}
        write_weights(folder / name, _tower_tensors(source, dtype))
        write_json(folder / name / "config.json", _tower_config(source))
        if is_clip:
            write_json(folder / name / "preprocessor_config.json", source.rules.to_preprocessor_config())
    else:
        config["mm_vision_tower"] = _reference(source)
    with_tower = source.has_tower_inside and not own_tower
    write_weights(folder, _tensors(source, dtype, with_tower=with_tower))
    write_json(folder / "preprocessor_config.json", source.rules.to_preprocessor_config())
    generation_config(source.config, source.tokenizer).save_pretrained(folder)
    _write_tokenizer(source, folder)
    write_json(folder / "config.json", config)


def _has_no_tower_elsewhere(source: Source) -> bool:
    return source.has_tower_inside and source.checkpoint.kind in ("own", "hf")


def _reference(source: Source) -> str | None:
    """Return `mm_vision_tower`: a hub id as it is, a folder here as an absolute path."""
    name = source.config.mm_vision_tower
    if name is None or source.has_tower_inside:
        return name
    folder = tower_folder(name, source.checkpoint.path)
    is_cached = "snapshots" in folder.parts
    return name if is_cached else str(folder.resolve())


def _tensors(source: Source, dtype: torch.dtype, *, with_tower: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor under the original's name."""
    kept = (
        (name, tensor)
        for name, tensor in _in_order(source.tensors(dtype))
        if with_tower or not name.startswith(TOWER)
    )
    text_type = source.config.text_config.model_type
    return original_tensors(kept, family=family_of(source.config), text_type=text_type)


def _tower_tensors(source: Source, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in _tensors(source, dtype, with_tower=True):
        if name.startswith(TOWER_PREFIX):
            yield name[len(TOWER_PREFIX) :], tensor


def _in_order(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Give q, k and v of a tower's layer after each other, in this order: `original_tensors` wants it."""
    waiting: dict[tuple[str, str], dict[str, tuple[str, torch.Tensor]]] = {}
    for name, tensor in tensors:
        match = _ATTENTION.fullmatch(name)
        if match is None:
            yield name, tensor
            continue
        found = waiting.setdefault((match[1], match[3]), {})
        found[match[2]] = (name, tensor)
        if len(found) == 3:
            yield from (found[part] for part in "qkv")
            del waiting[match[1], match[3]]


def _tower_config(source: Source) -> dict[str, Any]:
    built = source.config.vision_config.num_hidden_layers
    architecture = "CLIPVisionModel" if family_of(source.config) == "clip" else "InternVisionModel"
    return {"architectures": [architecture], **(source.config.tower or {}), "num_hidden_layers": built}


def _write_tokenizer(source: Source, folder: Path) -> None:
    """Write the files that the original's slow tokenizer reads."""
    tokenizer, model_file = source.tokenizer, source.tokenizer_model
    assert model_file is not None, "checked before"
    shutil.copyfile(model_file, folder / "tokenizer.model")
    num_pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).get_piece_size()
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if name in _NAMED}
    added = {token: index for token, index in tokenizer.get_vocab().items() if index >= num_pieces}
    write_json(folder / "special_tokens_map.json", named)
    if added:
        write_json(folder / "added_tokens.json", dict(sorted(added.items(), key=lambda item: item[1])))
    decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": bool(tokenizer.init_kwargs.get("legacy", True)),
            "add_bos_token": begins_with_bos(tokenizer),
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": tokenizer.model_max_length,
            "padding_side": tokenizer.padding_side,
            "sp_model_kwargs": {},
            **named,
            "added_tokens_decoder": {
                str(index): {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for index, token in sorted(decoder.items())
            },
        },
    )
