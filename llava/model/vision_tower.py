"""The vision tower with the face that code written for the original knows: `model.get_vision_tower()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM
    from llava.processing.pixels import ImageProcessor


class VisionTower:
    """A view of a loaded model's tower; holds nothing of its own."""

    is_loaded = True
    """The tower is loaded with the model, from the checkpoint or from beside it."""

    def __init__(self, model: LlavaForCausalLM) -> None:
        self._model = model

    def load_model(self, *_: object, **__: object) -> None:
        """Do nothing: the tower is loaded."""

    def to(self, *_: object, **__: object) -> VisionTower:
        """Return itself: the tower is where the model is, in its dtype."""
        return self

    @torch.no_grad()
    def __call__(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Return the tapped features float[B, N, Ct] of float[B, 3, H, W], or a list for a list."""
        if isinstance(images, list):
            return [self._model.model.tower_features(image[None]) for image in images]
        return self._model.model.tower_features(images).to(images.dtype)

    @property
    def image_processor(self) -> ImageProcessor | None:
        """The checkpoint's picture rules; None for a model that was built and not loaded."""
        return self._model.image_processor

    @property
    def vision_tower(self) -> torch.nn.Module:
        """The native tower module."""
        return self._model.model.vision_tower

    @property
    def config(self) -> Any:
        """The native tower's configuration."""
        return self._model.config.vision_config

    @property
    def select_layer(self) -> int:
        """`mm_vision_select_layer`."""
        return self._model.config.mm_vision_select_layer

    @property
    def select_feature(self) -> str:
        """`mm_vision_select_feature`."""
        return self._model.config.mm_vision_select_feature

    @property
    def hidden_size(self) -> int:
        """Width of the features before the projector."""
        return self._model.config.mm_hidden_size

    @property
    def num_patches(self) -> int:
        """Patches of a picture at the size in use, the class token not counted."""
        is_full = self._model.config.vision_feature_select_strategy == "full"
        return self._model.config.image_seq_length - is_full

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the tower's weights."""
        return next(self.vision_tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the tower's weights."""
        return next(self.vision_tower.parameters()).device

    @property
    def dummy_feature(self) -> torch.Tensor:
        """A feature of zeros: float[1, Ct]."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)
