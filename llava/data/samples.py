"""A record of the data -> ids, labels and pixels of one training sample.

Place in the flow: after `records`, before `collator`. The number of -200 in the ids is the number of pictures
that go with them, always: the original let them differ, and every later sample of the batch then saw another
sample's picture (spec, defect 20).

P pictures, S pixels a side, N features per picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Example
from llava.data.records import Picture, Record
from llava.data.truncation import Cut, Truncation, cut_ids, cut_turns, expanded_length
from llava.errors import ConfigError, DataError
from llava.processing.images import load_image
from llava.processing.pixels import ImageProcessor
from llava.processing.supervision import Supervised, supervise
from llava.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a ChatML-like template writes in front of its system text: "<|im_start|>system\n", "<|system|>\n".
_SYSTEM_HEADER: Final = re.compile(r"(<\|[a-z_]+\|>(?:system)?\n?)?")


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample without its pixels, cut to length."""

    input_ids: list[int]
    """One -200 per picture."""
    labels: list[int]
    """As long as input_ids; -100 where nothing is trained."""
    images: tuple[Picture, ...]
    """The pictures of the -200s, in their order: those of rounds that were cut off are gone."""
    num_tokens: int
    """Positions in the model: a picture counts N."""
    num_targets: int
    """Labels that are trained; the first position's never is, for nothing predicts it."""
    num_dropped_rounds: int
    is_truncated: bool


class SampleEncoder:
    """Turns records into training samples by one tokenizer, one template and one picture processor.

    Holds nothing that changes, so that worker processes can have copies.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        image_processor: ImageProcessor | None,
        num_image_tokens: int,
        *,
        max_length: int,
        im_start_end: bool = False,
        truncation: Truncation = "turns",
        has_pictures: bool = True,
    ) -> None:
        """Take the parts.

        image_processor: None for a language model alone. num_image_tokens: N, 0 without pictures.
        max_length: tokens of a sample, see `truncation`. has_pictures: whether the model takes pictures; if
        not, samples that have some are errors. Raises ConfigError for parts that do not fit together.
        """
        if has_pictures and (image_processor is None or num_image_tokens < 1):
            raise ConfigError("a model that takes pictures needs an image processor and image tokens")
        if max_length < 2:
            raise ConfigError(
                f"data.max_length is {max_length}", remedy="Give the tokens of a sample, such as 2048."
            )
        self.tokenizer = tokenizer
        self.template = template
        self.image_processor = image_processor
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.im_start_end = im_start_end
        self.truncation = truncation
        self.has_pictures = has_pictures

    @property
    def image_size(self) -> int:
        """Pixels a side of a picture; 0 for a language model alone."""
        return 0 if self.image_processor is None else self.image_processor.rules.size

    def encode(self, record: Record) -> EncodedSample:
        """Return ids and labels, cut to length.

        Raises DataError, with the record's place, when the template cannot hold the sample, when places and
        pictures differ in number, or when not even the first question fits.
        """
        try:
            return self._encode(record)
        except DataError as error:
            if error.where:
                raise
            raise DataError(error.cause, remedy=error.remedy, where=record.where) from error

    def example(self, index: int, record: Record) -> Example:
        """Return the sample with its pictures loaded and processed.

        Raises what `encode` raises, and ImageError when a picture cannot be read.
        """
        encoded = self.encode(record)
        return Example(
            index=index,
            id=record.id,
            source=record.source,
            input_ids=encoded.input_ids,
            labels=encoded.labels,
            pixel_values=self._pixels(encoded.images),
        )

    def _encode(self, record: Record) -> EncodedSample:
        num_pictures = len(record.images)
        if num_pictures and not self.has_pictures:
            raise DataError(
                f"the sample has {num_pictures} picture(s), and the model takes none: model.vision_tower is "
                "not set",
                remedy="Name a vision tower, or leave such samples out.",
            )
        template = self._template_of(record)

        def encode(turns: Sequence[Mapping[str, str]]) -> Supervised:
            return supervise(
                turns,
                self.tokenizer,
                template,
                has_image=bool(num_pictures),
                model_max_length=None,
                im_start_end=self.im_start_end,
                keeps_places=num_pictures > 1,
            )

        if self.truncation == "original":
            whole = encode(record.turns)
            self._check_places(whole, num_pictures)
            return self._finished(cut_ids(whole, max_length=self.max_length), record)
        cut = cut_turns(
            record.turns, encode, max_length=self.max_length, num_image_tokens=self.num_image_tokens
        )
        self._check_places(encode(record.turns) if cut.num_dropped_rounds else cut.sample, num_pictures)
        return self._finished(cut, record)

    def _template_of(self, record: Record) -> ChatTemplate:
        """Return the template, with the sample's own system text where it has one."""
        if not record.system:
            return self.template
        for token in self.tokenizer.all_special_tokens:
            if token in record.system:
                raise DataError(
                    f"the system text spells the control token {token}", remedy="Take it out of the text."
                )
        header = _SYSTEM_HEADER.match(self.template.system)
        return replace(self.template, system=(header[0] if header else "") + record.system)

    def _check_places(self, sample: Supervised, num_pictures: int) -> None:
        num_places = sample.input_ids.count(IMAGE_TOKEN_INDEX)
        if num_places != num_pictures:
            raise DataError(
                f"the sample has {num_places} place(s) for {num_pictures} picture(s) in the prompt of "
                f"template {self.template.name}",
                remedy="Write <image> once for every picture, in a question.",
            )

    def _finished(self, cut: Cut, record: Record) -> EncodedSample:
        ids, labels = cut.sample
        return EncodedSample(
            input_ids=ids,
            labels=labels,
            images=record.images[: ids.count(IMAGE_TOKEN_INDEX)],
            num_tokens=expanded_length(ids, self.num_image_tokens),
            num_targets=sum(label != IGNORE_INDEX for label in labels[1:]),
            num_dropped_rounds=cut.num_dropped_rounds,
            is_truncated=cut.is_truncated,
        )

    def _pixels(self, images: Sequence[Picture]) -> torch.Tensor:
        """Return float32[P, 3, S, S]."""
        if self.image_processor is None or not images:
            return torch.zeros(0, 3, self.image_size, self.image_size)
        return self.image_processor([load_image(image) for image in images])
