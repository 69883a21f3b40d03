"""The torch engine: a loaded model that answers requests, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.engine.engine import ChatEngine, EngineOptions
from llava.engine.frontend import Frontend
from llava.engine.sequential_runner import SequentialRunner
from llava.engine.torch_runner import TorchRunner
from llava.model.ragged_attention import can_be_ragged

if TYPE_CHECKING:
    from llava.model.builder import LoadedModel
    from llava.model.modeling import LlavaForCausalLM


class TorchEngine(ChatEngine):
    """A loaded model that answers requests with torch."""

    def __init__(self, loaded: LoadedModel, options: EngineOptions | None = None) -> None:
        """Take over a loaded model."""
        options = options or EngineOptions()
        runner_of = TorchRunner if can_be_ragged(loaded.model.model.language_model) else SequentialRunner
        runner = runner_of(loaded.model, loaded.device, max_cache_bytes=options.cache_bytes)
        super().__init__(Frontend.of_loaded(loaded), runner, options)
        self.loaded = loaded
        self.notices = loaded.notices

    @property
    def model(self) -> LlavaForCausalLM:
        """The transformers model."""
        return self.loaded.model
