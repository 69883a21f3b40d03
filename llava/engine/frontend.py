"""What stands between people and a runner: words and pictures become a prompt, and limits are checked.

The first step of every request, in the thread of whoever asks; the scheduler takes it from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL.Image import Image

from llava.engine.pictures import Picture, SharedPictures
from llava.engine.prompt import Prompt
from llava.errors import ContextLengthError, ImageLimitError
from llava.processing.images import ImageSource, load_image
from llava.processing.processor import Processor, check_placeholders

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llava.engine.request import Request
    from llava.model.builder import LoadedModel

MAX_IMAGES_PER_REQUEST = 16


@dataclass(frozen=True)
class Frontend:
    """Everything about a model that the engine knows apart from its weights."""

    processor: Processor
    context_length: int
    """Tokens that prompt, pictures and answer may have together."""
    eos_ids: frozenset[int]
    """Ids that end an answer."""

    @classmethod
    def of_loaded(cls, loaded: LoadedModel) -> Frontend:
        """Take the parts of a loaded model."""
        processor = Processor(
            tokenizer=loaded.tokenizer,
            image_processor=loaded.image_processor,
            template=loaded.template,
            num_image_tokens=loaded.num_image_tokens,
            im_start_end=loaded.im_start_end,
        )
        return cls(processor, loaded.context_length, eos_ids_of(loaded.model, loaded.tokenizer))

    def prepare(self, request: Request, shared: SharedPictures | None = None) -> Prompt:
        """Return a request's prompt, its pictures loaded; `shared` knows those of other requests.

        Raises ImageLimitError, PlaceholderError, ContextLengthError, PromptError, ImageError.
        """
        if len(request.images) > MAX_IMAGES_PER_REQUEST:
            raise ImageLimitError(
                f"{len(request.images)} pictures in one request",
                remedy=f"Give at most {MAX_IMAGES_PER_REQUEST}.",
            )
        ids = self.processor.encode(request.prompt if request.prompt is not None else request.turns)
        check_placeholders(ids, len(request.images))
        input_ids = self.processor.expand(ids)
        if len(input_ids) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(input_ids)} tokens, the model's context {self.context_length}",
                remedy="Shorten the conversation, or use fewer pictures.",
            )
        pictures = [self._picture(image, shared) for image in request.images]
        return Prompt.of(input_ids, pictures, self.processor.num_image_tokens)

    def _picture(self, image: ImageSource, shared: SharedPictures | None) -> Picture:
        def make() -> Picture:
            return Picture(load_image(image), self.processor.image_processor)

        # A file may hold something else the next time; an image in memory is the caller's to leave alone.
        return make() if shared is None or not isinstance(image, Image) else shared.take(image, make)


def eos_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end an answer: the generation config's (one or several) and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)
