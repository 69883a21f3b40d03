"""The language model as a GGUF file of llama.cpp's architecture "llama": names, rope layout, settings.

llama.cpp turns neighbouring pairs of a head's values where transformers turns halves, so that the rows of the
query and key projections change places (source: llama.cpp's converter, `conversion/llama.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import torch

from llava.engine.gguf_facts import MANIFEST_KEY, GgufManifest
from llava.errors import ConfigError
from llava.export.gguf_file import Planned
from llava.export.gguf_types import FILE_TYPES, tensor_type
from llava.export.gguf_vocabulary import add_vocabulary, check_vocabulary
from llava.model.conventions import context_length, generation_config
from llava.model.mapping import LANGUAGE
from llava.processing.encoding import is_nonlegacy_sentencepiece

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from llava.export.source import Source

ARCHITECTURE = "llama"
_SUPPORTED = ("llama", "mistral")
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {
    f"{LANGUAGE}embed_tokens.weight": "token_embd.weight",
    f"{LANGUAGE}norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = re.compile(re.escape(LANGUAGE) + r"layers\.(\d+)\.(.+)\.(weight|bias)")


def check_model(source: Source) -> None:
    """Raise ConfigError for a language model that the GGUF file would not hold exactly."""
    text = source.config.text_config
    if text.model_type not in _SUPPORTED:
        raise ConfigError(
            f"the language model is of type {text.model_type!r}, and only {' and '.join(_SUPPORTED)} are "
            "written to GGUF",
            remedy="Use --to hf, and llama.cpp's convert_hf_to_gguf.py on its language model.",
        )
    if text.hidden_act != "silu":
        raise ConfigError(f"hidden_act is {text.hidden_act!r}, and llama.cpp computes 'silu' in this model")
    rope = text.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise ConfigError(
            f"rope_type is {rope['rope_type']!r}, which is not written to GGUF",
            remedy="Only plain rotary embeddings and linear scaling are.",
        )
    if text.model_type == "mistral":
        window = text.sliding_window
        if window is not None and window < context_length(source.config):
            raise ConfigError(
                f"sliding_window is {window} in a context of {context_length(source.config)}: llama.cpp's "
                "architecture attends to everything",
                remedy=f"Set max_sequence_length to {window} in config.json to use the model up to there.",
            )
    check_vocabulary(source.tokenizer)


def plan_model(source: Source, file_type: str) -> tuple[dict[str, Planned], list[str]]:
    """Return the tensors of the file by the source's names, and a line for those of another type."""
    text = source.config.text_config
    plan: dict[str, Planned] = {}
    changed: Counter[tuple[int, str]] = Counter()
    for name, shape in source.shapes.items():
        gguf_name = _gguf_name(name)
        if gguf_name is None:
            continue
        chosen, is_fallback = tensor_type(
            gguf_name,
            shape,
            file_type,
            num_layers=text.num_hidden_layers,
            is_tied="lm_head.weight" not in source.shapes,
        )
        if is_fallback:
            changed[shape[-1], chosen] += 1
        heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
        kind = name.split(".")[-2]
        change = _rope_order(heads[kind]) if kind in heads else None
        plan[name] = Planned(gguf_name, shape, chosen, change)
    notes = [
        f"tensors that are {chosen}, as rows of {width} values are no whole blocks of {file_type}: {count}"
        for (width, chosen), count in sorted(changed.items())
    ]
    return plan, notes


class ModelKeys:
    """Adds the metadata of the language model's file."""

    def __init__(self, source: Source, file_type: str, chat_template: str) -> None:
        self._source = source
        self._file_type = file_type
        self._chat_template = chat_template

    def __call__(self, writer: GGUFWriter) -> None:
        """Add every key."""
        source, text = self._source, self._source.config.text_config
        head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
        rope = text.rope_parameters
        writer.add_name(source.checkpoint.path.resolve().name)
        writer.add_file_type(FILE_TYPES[self._file_type])
        writer.add_quantization_version(2)
        writer.add_vocab_size(text.vocab_size)
        writer.add_context_length(context_length(source.config))
        writer.add_embedding_length(text.hidden_size)
        writer.add_block_count(text.num_hidden_layers)
        writer.add_feed_forward_length(text.intermediate_size)
        writer.add_head_count(text.num_attention_heads)
        writer.add_head_count_kv(text.num_key_value_heads)
        writer.add_layer_norm_rms_eps(text.rms_norm_eps)
        writer.add_rope_dimension_count(head_dim)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if rope.get("rope_type") == "linear":
            import gguf

            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        generation = generation_config(source.config, source.tokenizer)
        eos = generation.eos_token_id
        add_vocabulary(
            writer,
            source.tokenizer,
            num_rows=text.vocab_size,
            eos_id=eos[0] if isinstance(eos, list) else eos,
            pad_id=source.tokenizer.pad_token_id,
        )
        writer.add_chat_template(self._chat_template)
        writer.add_string(MANIFEST_KEY, _manifest(source).to_json())


def _manifest(source: Source) -> GgufManifest:
    return GgufManifest(
        template=source.template.name,
        image=source.rules.to_dict(),
        im_start_end=source.config.mm_use_im_start_end,
        legacy=not is_nonlegacy_sentencepiece(source.tokenizer),
    )


def _gguf_name(name: str) -> str | None:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = _LAYER.fullmatch(name)
    return None if match is None else f"blk.{match[1]}.{_NAMES[match[2]]}.{match[3]}"


class _rope_order:
    """Reorders the rows of each head from halves to neighbouring pairs."""

    def __init__(self, num_heads: int) -> None:
        self._num_heads = num_heads

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        halves = tensor.reshape(self._num_heads, 2, -1, *tensor.shape[1:])  # [heads, 2, head_dim / 2, ...]
        return halves.swapaxes(1, 2).reshape(tensor.shape)
