"""The model: transformers' own LLaVA class over the original's vocabulary, with the original's calls.

    pixel_values -> vision tower up to the tapped layer -> projector -> places of -200 -> language model

Two differences to the native class. No row is added to the vocabulary for pictures: a picture's places hold
-200 in `input_ids`, the embedding looks negative ids up as 0, and the native code overwrites those rows, so
that logits and loss are the original's. And the projector is ours (`projector`), since the native one has a
single form. `forward` and `generate` also take the original's arguments (`images=`, one -200 per picture).

B rows, L tokens, N features per picture, C hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel
from transformers import LlavaForConditionalGeneration as NativeLlava
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModel,
    LlavaPreTrainedModel,
)

from llava.model.config import LlavaConfig, LlavaMptConfig
from llava.model.generating import generate
from llava.model.projector import build_projector
from llava.model.splicing import Side, Spliced, picture_batches, splice
from llava.model.vision_tower import VisionTower

if TYPE_CHECKING:
    from llava.processing.pixels import ImageProcessor

Images = torch.Tensor | Sequence[torch.Tensor]
CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(NativeLlava.forward).parameters else "past_key_values"
)
"""What `forward` calls the keys and values of earlier tokens: transformers 5.24 renamed it."""


def clamp_ids(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Look negative ids (places of pictures) up as id 0; a hook before the token embedding's forward."""
    return (args[0].clamp(min=0), *args[1:])


class MultimodalModel(LlavaModel):
    """Tower, projector and language model without its head."""

    def __init__(self, config: LlavaConfig) -> None:
        # The native constructor would build its own projector first.
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(
            config.mm_projector_type,
            tower_size=config.vision_config.hidden_size,
            hidden_size=config.text_config.hidden_size,
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.get_input_embeddings().register_forward_pre_hook(clamp_ids)
        self.post_init()

    @property
    def mm_projector(self) -> nn.Module:
        """The projector, under the original's name."""
        return self.multi_modal_projector

    @property
    def embed_tokens(self) -> nn.Module:
        """The token embedding, under the original's name."""
        return self.get_input_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding, whatever it is called there."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)
        value.register_forward_pre_hook(clamp_ids)

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the tapped hidden state float[B, N, Ct] of float[B, 3, H, W], before the projector."""
        weight = next(self.vision_tower.parameters())
        # The weights of an offloaded tower are elsewhere until it runs; its hook moves the input.
        device = pixel_values.device if weight.is_meta else weight.device
        hidden = self.vision_tower(
            pixel_values.to(device, weight.dtype), return_dict=True
        ).last_hidden_state  # [B, 1 + N, Ct]
        return hidden if self.config.vision_feature_select_strategy == "full" else hidden[:, 1:]

    def get_image_features(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutputWithPooling:
        """Return what the native forward asks for: `pooler_output` is a list of float[N, C]."""
        hidden = self.tower_features(pixel_values)
        features = self.multi_modal_projector(hidden)  # [B, N, C]
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=list(features))


class LlavaForCausalLM(NativeLlava):
    """Vision tower, projector and language model with its head."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = MultimodalModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.image_processor: ImageProcessor | None = None
        """Set by the loader; outside code reads it from `get_vision_tower()`."""
        if config.text_config.model_type == "mpt":
            self._tied_weights_keys = {"lm_head.weight": "model.language_model.wte.weight"}
        self.post_init()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features float[B, N, C] of `images: float[B, 3, H, W]`, normalised, any float dtype."""
        return self.model.multi_modal_projector(self.model.tower_features(images))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: object = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Run the model; with `labels: int64[B, L]` the mean loss over labels that are not -100 is computed.

        The native call has N times -200 per picture in `input_ids: int64[B, L]` and `pixel_values:
        float[B, 3, H, W]`; the original's has one -200 per picture and `images`. Raises PlaceholderError
        when the latter do not match.
        """
        del image_sizes
        if images is not None and input_ids is not None and input_ids.shape[1] > 1:
            spliced = self.splice(input_ids, images, attention_mask=attention_mask, labels=labels)
            inputs_embeds, labels = spliced.inputs_embeds, spliced.labels
            attention_mask, position_ids = spliced.attention_mask, spliced.position_ids
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )

    def splice(
        self,
        input_ids: torch.Tensor,
        images: Images,
        *,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        padding_side: Side = "right",
    ) -> Spliced:
        """Encode `images` and put their features where `input_ids` has -200; see `splicing.splice`."""
        return self.splice_features(
            input_ids,
            self.picture_features(images),
            attention_mask=attention_mask,
            labels=labels,
            padding_side=padding_side,
        )

    def splice_features(
        self,
        input_ids: torch.Tensor,
        features: Sequence[torch.Tensor],
        *,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        padding_side: Side = "right",
    ) -> Spliced:
        """Put features, one float[n, C] per picture, where `input_ids` has -200."""
        return splice(
            input_ids,
            features,
            self.get_input_embeddings(),
            attention_mask=attention_mask,
            labels=labels,
            padding_side=padding_side,
        )

    def picture_features(self, images: Images) -> list[torch.Tensor]:
        """Return one float[n * N, C] per picture of a tensor or list of pictures, n crops each."""
        batches = picture_batches(images)
        if not batches:
            return []
        features = self.encode_images(torch.cat(batches))  # [sum of n, N, C]
        return [crops.flatten(0, 1) for crops in features.split([len(batch) for batch in batches])]

    @torch.no_grad()
    def generate(
        self, inputs: torch.Tensor | None = None, images: Images | None = None, **kwargs: Any
    ) -> Any:
        """Continue prompts; takes the native arguments and the original's, see `generating.generate`."""
        return generate(self, super().generate, inputs, images, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *_: Any, **kwargs: Any) -> LlavaForCausalLM:
        """Load a checkpoint of any kind; `dtype`, `device` and `device_map` are honoured."""
        from llava.model.builder import load_pretrained_model

        kwargs.setdefault("device", "auto")
        model: LlavaForCausalLM = load_pretrained_model(pretrained_model_name_or_path, **kwargs)[1]
        return model

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Write our own format without a tokenizer; `saving.save_checkpoint` writes it with one."""
        from llava.model.saving import rules_of, save_checkpoint

        save_checkpoint(save_directory, model=self, tokenizer=None, rules=rules_of(self), template=None)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: object = None,
    ) -> tuple[Any, ...]:
        """Return the original's six values: None for the ids, and embeddings in their place."""
        del image_sizes
        if images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        spliced = self.splice(input_ids, images, attention_mask=attention_mask, labels=labels)
        return (
            None,
            spliced.position_ids,
            spliced.attention_mask,
            past_key_values,
            spliced.inputs_embeds,
            spliced.labels,
        )

    def get_model(self) -> MultimodalModel:
        """Return tower, projector and language model, as the original's method of this name."""
        return self.model

    def get_vision_tower(self) -> VisionTower:
        """Return the tower with the face that outside code knows."""
        return VisionTower(self)


class LlavaLlamaForCausalLM(LlavaForCausalLM):
    """The model under the original's name."""


class LlavaMptForCausalLM(LlavaForCausalLM):
    """The model over MPT under the original's name."""

    config_class = LlavaMptConfig
