"""A CLIP tower and its projector as llama.cpp's "mmproj" file.

llama.cpp's graph for it: patches, class embedding first, position table, pre-layernorm, blocks, then
Linear-GELU-Linear over all but the class. It has no q/k norms, so InternViT is refused; one projector, so
that others are refused; and its GELU is the tanh form, computed through a table of 16-bit floats, where
torch's is exact: this and 16-bit products are the differences that `gguf_certify` measures.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llava.errors import ConfigError
from llava.export.gguf_file import Planned
from llava.export.gguf_types import FILE_TYPES
from llava.model.mapping import PROJECTOR, TOWER

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from llava.export.source import Source

ARCHITECTURE = "clip"
_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_OUTSIDE = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
_KEPT_EXACT = ("v.class_embd", "v.position_embd.weight")
_LAYER = re.compile(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def check_projector(source: Source) -> None:
    """Raise ConfigError for a tower, projector or choice of features that llama.cpp cannot compute."""
    config = source.config
    if config.vision_config.model_type != "clip_vision_model":
        raise ConfigError(
            "the vision tower is an InternViT, and llama.cpp's graph for this projector has no norms of "
            "queries and keys, so that no GGUF file can hold the tower",
            remedy="Use --to hf, or --without-tower for the language model alone.",
        )
    if config.mm_projector_type != "mlp2x_gelu":
        raise ConfigError(
            f"mm_projector_type is {config.mm_projector_type!r}, and llama.cpp has 'mlp2x_gelu' alone",
            remedy="Use --to hf or --to legacy.",
        )
    if config.mm_vision_select_feature != "patch":
        raise ConfigError(
            f"mm_vision_select_feature is {config.mm_vision_select_feature!r}, and llama.cpp leaves "
            "the class out",
            remedy="Use --to hf or --to legacy.",
        )
    if config.vision_config.hidden_act not in ("quick_gelu", "gelu"):
        raise ConfigError(f"hidden_act of the tower is {config.vision_config.hidden_act!r}")


def plan_projector(source: Source, *, is_exact: bool) -> dict[str, Planned]:
    """Return the tensors of the file by the source's names; is_exact: matrices in F32 instead of F16."""
    plan: dict[str, Planned] = {}
    for name, shape in source.shapes.items():
        gguf_name = _gguf_name(name)
        if gguf_name is not None:
            is_matrix = len(shape) > 1 and gguf_name not in _KEPT_EXACT and not is_exact
            plan[name] = Planned(gguf_name, shape, "F16" if is_matrix else "F32")
    return plan


class ProjectorKeys:
    """Adds the metadata of the mmproj file."""

    def __init__(self, source: Source, *, is_exact: bool) -> None:
        self._source = source
        self._file_type = "F32" if is_exact else "F16"

    def __call__(self, writer: GGUFWriter) -> None:
        """Add every key."""
        source, vision = self._source, self._source.config.vision_config
        writer.add_type("mmproj")
        writer.add_name(source.checkpoint.path.resolve().name)
        writer.add_file_type(FILE_TYPES[self._file_type])
        writer.add_clip_has_vision_encoder(True)
        writer.add_bool("clip.has_llava_projector", True)
        writer.add_clip_projector_type("mlp")
        writer.add_vision_image_size(vision.image_size)
        writer.add_vision_patch_size(vision.patch_size)
        writer.add_vision_embedding_length(vision.hidden_size)
        writer.add_vision_feed_forward_length(vision.intermediate_size)
        writer.add_vision_projection_dim(source.config.text_config.hidden_size)
        writer.add_vision_block_count(vision.num_hidden_layers)
        writer.add_vision_head_count(vision.num_attention_heads)
        writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
        writer.add_vision_use_gelu(vision.hidden_act == "gelu")
        writer.add_vision_image_mean(list(source.rules.mean))
        writer.add_vision_image_std(list(source.rules.std))
        # Without it llama.cpp leaves out the last block, as the towers it knows are tapped before their last.
        writer.add_array("clip.vision.feature_layer", [vision.num_hidden_layers])


def _gguf_name(name: str) -> str | None:
    if name.startswith(PROJECTOR):
        return f"mm.{name[len(PROJECTOR) :]}"
    match = _LAYER.fullmatch(name)
    if match is not None:
        return f"v.blk.{match[1]}.{_NAMES[match[2]]}.{match[3]}"
    return _OUTSIDE.get(name.removeprefix(TOWER))
