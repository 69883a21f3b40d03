"""What a sample becomes as tokens: its length, what is trained, what is cut off, and what that looks like.

After `samples`, for those that are sound. Encoding and cutting are the trainer's own (`data.samples`), so
that the forecast is what will happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.records import Record
from llava.data.samples import EncodedSample, SampleEncoder
from llava.errors import DataError, LlavaError
from llava.processing.image_rules import clip_rules
from llava.processing.pixels import ImageProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava.templates import ChatTemplate

_UNLIMITED: Final = 10**9
FORECAST: Final = (512, 1024, 2048, 4096, 8192)
"""Lengths for which the cut is forecast, besides the one asked for."""
_Positions = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """Part of a prompt for the preview."""

    text: str
    is_trained: bool
    num_image_tokens: int = 0
    """Above 0: a picture."""


class Length(NamedTuple):
    """Positions of one sample in the model, before any cut."""

    text: int
    pictures: int
    targets: int

    @property
    def total(self) -> int:
        """Text and pictures."""
        return self.text + self.pictures


@dataclass
class Forecast:
    """What a limit would cut off."""

    limit: int
    num_cut: int = 0
    """Samples that lose turns or the end of an answer."""
    num_lost: int = 0
    """Samples of which nothing trained is left."""
    num_targets_lost: int = 0
    num_targets: int = 0

    def add(self, positions: _Positions | None, length: Length) -> None:
        """Count a sample; positions: of its targets, only needed where it is longer than the limit."""
        self.num_targets += length.targets
        if positions is None or length.total <= self.limit:
            return
        kept = kept_targets(positions, self.limit)
        self.num_targets_lost += length.targets - kept
        if kept:
            self.num_cut += 1
        else:
            self.num_lost += 1


def kept_targets(positions: _Positions, limit: int) -> int:
    """Return how many targets are left when whole rounds beyond `limit` go (of a lone round, its end)."""
    if not positions.size:
        return 0
    ends = np.flatnonzero(np.diff(positions, append=positions[-1] + 2) > 1)
    whole = ends[positions[ends] < limit]
    if whole.size:
        return int(whole[-1]) + 1
    return int((positions < limit).sum())


@dataclass
class TokenChecker:
    """Encodes samples as the trainer will."""

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    num_image_tokens: int
    max_length: int
    im_start_end: bool = False
    origin: str = ""
    """Where the tokenizer is from, for the report."""
    forecasts: list[Forecast] = field(init=False)

    def __post_init__(self) -> None:
        self._whole = self._encoder(_UNLIMITED)
        self._cut = self._encoder(self.max_length)
        self.forecasts = [Forecast(limit) for limit in sorted({*FORECAST, self.max_length})]

    def _encoder(self, max_length: int) -> SampleEncoder:
        return SampleEncoder(
            self.tokenizer,
            self.template,
            # The rules change no token; the encoder wants them for models that take pictures.
            ImageProcessor(clip_rules(336)),
            self.num_image_tokens,
            max_length=max_length,
            im_start_end=self.im_start_end,
        )

    def examine(self, record: Record) -> tuple[Length | None, list[tuple[str, str]]]:
        """Return the length of a sample, None when it cannot be encoded, and its faults."""
        try:
            whole = self._whole.encode(record)
        except LlavaError as error:
            return None, [("sample-untrainable", _without_place(error, record.where))]
        length = self._length(whole)
        is_long = length.total > self.forecasts[0].limit
        positions = self._target_positions(whole.input_ids, whole.labels) if is_long else None
        for forecast in self.forecasts:
            forecast.add(positions, length)
        return length, self._faults(record, length)

    def faults(self, record: Record) -> list[tuple[str, str]]:
        """Return the faults of a sample, and count it nowhere."""
        try:
            whole = self._whole.encode(record)
        except LlavaError as error:
            return [("sample-untrainable", _without_place(error, record.where))]
        return self._faults(record, self._length(whole))

    def _length(self, whole: EncodedSample) -> Length:
        in_pictures = whole.input_ids.count(IMAGE_TOKEN_INDEX) * self.num_image_tokens
        return Length(whole.num_tokens - in_pictures, in_pictures, whole.num_targets)

    def _faults(self, record: Record, length: Length) -> list[tuple[str, str]]:
        if not length.targets:
            return [("nothing-trained", f"none of {length.total} tokens is trained")]
        if length.total <= self.max_length:
            return []
        size = f"{length.total} tokens, {length.pictures} of them pictures', for {self.max_length}"
        try:
            cut = self._cut.encode(record)
        except DataError:
            return [("question-too-long", size)]
        if cut.num_dropped_rounds:
            return [("over-length", f"{size}: the last {cut.num_dropped_rounds} round(s) go")]
        return [("over-length", f"{size}: the end of the answer goes")]

    def _target_positions(self, ids: Sequence[int], labels: Sequence[int]) -> _Positions:
        """Return where the trained tokens are, pictures expanded."""
        widths = np.where(np.asarray(ids) == IMAGE_TOKEN_INDEX, self.num_image_tokens, 1)
        ends = np.cumsum(widths) - 1
        positions: _Positions = ends[np.asarray(labels) != IGNORE_INDEX].astype(np.int64)
        return positions

    def preview(self, record: Record) -> list[Piece]:
        """Return a sample's prompt in pieces that are trained or not; raises LlavaError."""
        encoded = self._whole.encode(record)
        pieces: list[Piece] = []
        chunk: list[int] = []
        flags: list[bool] = []
        for token, label in zip([*encoded.input_ids, IMAGE_TOKEN_INDEX], [*encoded.labels, 0], strict=True):
            if token != IMAGE_TOKEN_INDEX:
                chunk.append(token)
                flags.append(label != IGNORE_INDEX)
                continue
            pieces += self._pieces(chunk, flags)
            pieces.append(Piece("", False, self.num_image_tokens))
            chunk, flags = [], []
        return pieces[:-1]

    def _pieces(self, ids: list[int], flags: list[bool]) -> list[Piece]:
        """Decode tokens, cut where trained and untrained ones meet."""
        pieces: list[Piece] = []
        done = ""
        for index, flag in enumerate(flags):
            if index + 1 < len(flags) and flags[index + 1] == flag:
                continue
            # Decoding a beginning keeps the spaces that decoding a middle part would lose.
            text = str(self.tokenizer.decode(ids[: index + 1], skip_special_tokens=False))
            pieces.append(Piece(text[len(done) :], flag))
            done = text
        return pieces


def _without_place(error: LlavaError, where: str) -> str:
    return error.cause.removeprefix(f"{where}: ")
