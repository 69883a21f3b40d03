"""torch modules to OpenVINO graphs: the tower with its projector, the decoder as paged attention wants it.

First half of a conversion (`conversion` is the second). The decoder is transformers' own: only its attention
function and its cache are ours while it is traced, so that the graph has the form in which OpenVINO finds
keys and values, ReadValue -> Gather(beam_idx) -> Concat -> ScaledDotProductAttention -> Assign, and can put
PagedAttention in its place when the model is loaded (`paging`).

B rows or pictures, L tokens of a row, P earlier tokens, C hidden size, D head size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    import openvino

    from llava.model.modeling import LlavaForCausalLM

_ATTENTION = "llava_openvino"
"""Name of our attention function in transformers' register."""
_PAST, _PRESENT = "past.{}", "present.{}"


class _Vision(nn.Module):
    """Pictures to projected features."""

    def __init__(self, model: LlavaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.encode_images(pixel_values)


class _Decoder(nn.Module):
    """Embeddings to logits at wanted positions, with keys and values as explicit inputs and outputs."""

    def __init__(self, model: LlavaForCausalLM) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        wanted: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return (float[R, V], keys and values by layer) for inputs_embeds: float[B, L, C].

        attention_mask: float[B, 1, L, P + L]; position_ids: int64[B, L]; wanted: int64[R], places among all
        B * L positions.
        """
        cache = _ExplicitCache(past)
        hidden = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=False,
        ).last_hidden_state  # [B, L, C]
        # Flat before it is indexed: paged attention turns [1, L, C] into [L, 1, C].
        rows = hidden.flatten(0, 1).index_select(0, wanted)  # [R, C]
        return (self.lm_head(rows), *cache.present)


class _ExplicitCache:
    """What transformers' layers ask of a cache, over tensors that are inputs and outputs of the graph."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        self._past = past
        self.present: list[torch.Tensor] = []
        """Keys and values float[B, H, P + L, D] of the layers so far, alternating."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of one layer; returns all of them."""
        keys = torch.cat([self._past[2 * layer], keys], dim=2)
        values = torch.cat([self._past[2 * layer + 1], values], dim=2)
        self.present += [keys, values]
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """Return how many positions there are before this call."""
        return int(self._past[2 * layer].shape[2])


def _attend(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention with transformers' signature and one SDPA whose heads are repeated as OpenVINO knows it."""
    num_groups = query.shape[1] // key.shape[1]
    attended = functional.scaled_dot_product_attention(
        query,
        _repeat_heads(key, num_groups),
        _repeat_heads(value, num_groups),
        attn_mask=attention_mask,
        scale=scaling,
    )
    return attended.transpose(1, 2).contiguous(), None


def _repeat_heads(hidden: torch.Tensor, num_groups: int) -> torch.Tensor:
    if num_groups == 1:
        return hidden
    batch, num_heads, length, head_size = hidden.shape
    repeated = hidden[:, :, None].expand(batch, num_heads, num_groups, length, head_size)
    return repeated.reshape(batch, num_heads * num_groups, length, head_size)


def trace_vision(model: LlavaForCausalLM, image_size: int) -> openvino.Model:
    """Return the graph pixel_values: float32[B, 3, S, S] -> features: float32[B, N, C], B free."""
    pixels = torch.zeros(2, 3, image_size, image_size)
    graph = _convert(_Vision(model), {"pixel_values": pixels})
    graph.reshape({0: [-1, 3, image_size, image_size]})
    _name(graph.inputs, ["pixel_values"])
    _name(graph.outputs, ["features"])
    return graph


def trace_decoder(model: LlavaForCausalLM) -> openvino.Model:
    """Return the decoder as a stateful graph; inputs: inputs_embeds, attention_mask, position_ids, wanted,
    beam_idx; output: logits: float32[R, V]. Weights are shared with `model`, not copied."""
    config = model.config.get_text_config()
    num_layers, num_heads = config.num_hidden_layers, config.num_key_value_heads
    head_size = model.model.language_model.layers[0].self_attn.head_dim
    past = [torch.zeros(1, num_heads, 3, head_size) for _ in range(2 * num_layers)]
    example = {
        "inputs_embeds": torch.zeros(1, 4, config.hidden_size),
        "attention_mask": torch.zeros(1, 1, 4, 7),
        "position_ids": torch.arange(3, 7)[None],
        "wanted": torch.tensor([3]),
        "past": past,
    }
    with _our_attention(model.model.language_model):
        graph = _convert(_Decoder(model), example)
    pasts = [_PAST.format(index) for index in range(2 * num_layers)]
    _name(graph.inputs, ["inputs_embeds", "attention_mask", "position_ids", "wanted", *pasts])
    _name(graph.outputs, ["logits", *(_PRESENT.format(index) for index in range(2 * num_layers))])
    _make_stateful(graph, 2 * num_layers, (1, num_heads, 0, head_size))
    return graph


def _convert(module: nn.Module, example: dict[str, Any]) -> openvino.Model:
    import openvino

    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns about every Python number taken from a shape; the tests compare the results.
        warnings.simplefilter("ignore")
        return openvino.convert_model(module.eval(), example_input=example)


@contextmanager
def _our_attention(language_model: nn.Module) -> Iterator[None]:
    """Let the layers call `_attend` inside the block."""
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attend)
    config: Any = language_model.config
    before = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _name(ports: Sequence[Any], names: Sequence[str]) -> None:
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})
        if port.get_node().get_type_name() == "Parameter":
            # OpenVINO's own passes look some inputs up by this name.
            port.get_node().set_friendly_name(name)


def _make_stateful(graph: openvino.Model, num_states: int, empty: tuple[int, ...]) -> None:
    """Turn each past/present pair into a state that begins empty and can be reordered by `beam_idx`."""
    import numpy as np
    import openvino
    from openvino import opset13
    from openvino.passes import MakeStateful, Manager

    beam_idx = opset13.parameter([-1], openvino.Type.i32, name="beam_idx")
    _name([beam_idx.output(0)], ["beam_idx"])
    graph.add_parameters([beam_idx])
    for index in range(num_states):
        past = graph.input(_PAST.format(index)).get_node().output(0)
        readers = past.get_target_inputs()
        gathered = opset13.gather(past, beam_idx.output(0), opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    graph.validate_nodes_and_infer_types()
    manager = Manager()
    pairs = {_PAST.format(index): _PRESENT.format(index) for index in range(num_states)}
    manager.register_pass(MakeStateful(pairs))
    manager.run_passes(graph)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            # Paged attention is only put where a state says how it begins.
            node.set_arguments([opset13.constant(np.zeros(empty, dtype=np.float32)).output(0)])
    graph.validate_nodes_and_infer_types()
