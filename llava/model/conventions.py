"""What a checkpoint means beyond its weights: prompt template, extra tokens, context, ids for generation.

Place in the flow: `builder` asks once the parts of a checkpoint are known. No weight is read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import GenerationConfig

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.assembling import Parts
from llava.model.checkpoint import Checkpoint
from llava.model.config import LlavaConfig
from llava.templates import ChatTemplate, get_template, guess_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def choose_template(parts: Parts, asked: str | None) -> tuple[ChatTemplate, str]:
    """Return the prompt template and why: asked for, llava.json, the tower, then the table of names."""
    if asked is not None:
        return get_template(asked), "asked for"
    manifest = parts.checkpoint.manifest
    if manifest is not None and manifest.template is not None:
        return get_template(manifest.template), "llava.json"
    if parts.tower.family == "internvit":
        return get_template("vicuna_v1"), "an InternViT tower: the prompt of InternVL-Chat V1.0"
    if parts.original.get("model_type") == "llava_mpt":
        return get_template("mpt"), "an MPT language model"
    guess = guess_template(model_name(parts.checkpoint))
    parts.notices.append(f"Prompt template {guess.template.name}: {guess.reason}.")
    return guess.template, guess.reason


def model_name(checkpoint: Checkpoint) -> str:
    """Return what a released checkpoint is called: its folder, or parent and folder for `checkpoint-N`."""
    folder = checkpoint.path.resolve()
    return f"{folder.parent.name}_{folder.name}" if folder.name.startswith("checkpoint-") else folder.name


def add_special_tokens(tokenizer: PreTrainedTokenizerFast, parts: Parts) -> int:
    """Give the tokenizer the tokens the model was trained with; returns how many rows they need.

    A token is added when config.json says so, or when the embedding has exactly the row it would take
    (`mm_use_im_patch_token` counts as true where the key is absent, as in the original).
    """
    vocabulary = tokenizer.get_vocab()
    wanted: list[str] = []
    patch_flag = parts.original.get("mm_use_im_patch_token")
    has_its_row = parts.checkpoint.kind != "hf" and parts.vocab_size == len(tokenizer) + 1
    if DEFAULT_IMAGE_PATCH_TOKEN not in vocabulary and (patch_flag or (patch_flag is None and has_its_row)):
        wanted.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if parts.original.get("mm_use_im_start_end"):
        wanted += [t for t in (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN) if t not in vocabulary]
    if wanted:
        tokenizer.add_tokens(wanted, special_tokens=True)
    if len(tokenizer) > parts.vocab_size:
        missing = len(tokenizer) - parts.vocab_size
        parts.notices.append(
            f"The tokenizer has {missing} token(s) more than the embedding has rows: rows are added."
        )
    return len(tokenizer)


def context_length(config: LlavaConfig) -> int:
    """Return how many tokens the language model can take."""
    text = config.text_config
    limit = text.max_seq_len if text.model_type == "mpt" else text.max_position_embeddings
    return int(config.max_sequence_length or limit)


def generation_config(config: LlavaConfig, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Return greedy defaults with the model's own ids; sampling is the caller's to ask for."""
    text = config.text_config
    eos = text.eos_token_id if text.eos_token_id not in (None, []) else tokenizer.eos_token_id
    bos = text.bos_token_id if text.bos_token_id is not None else tokenizer.bos_token_id
    pad = text.pad_token_id if text.pad_token_id is not None else tokenizer.pad_token_id
    first_eos = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(
        eos_token_id=eos, bos_token_id=bos, pad_token_id=first_eos if pad is None else pad, do_sample=False
    )
