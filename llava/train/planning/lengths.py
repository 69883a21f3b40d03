"""How many samples a run has and how long they are: measured where the data is here, else known or stated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.mixture import open_data
from llava.data.samples import SampleEncoder
from llava.errors import ConfigError, DataError
from llava.processing.pixels import ImageProcessor, clip_rules
from llava.train.config import TrainConfig
from llava.train.planning.shapes import Shapes
from llava.train.trainee import template_of, training_tokenizer

NUM_MEASURED = 256
"""Samples that are tokenized to learn the lengths, evenly over the data."""
DEFAULT_SPREAD = 0.35
"""Standard deviation of a sample's length over its mean, where nothing was measured."""


@dataclass(frozen=True)
class Lengths:
    """A run's samples. All but `num_samples` are means over samples."""

    num_samples: int
    """Of one epoch."""
    text: float
    """Text tokens."""
    pictures: float
    targets: float
    """Supervised tokens."""
    source: str
    """Where this comes from, in words."""
    spread: float = DEFAULT_SPREAD
    """Standard deviation of the whole length over its mean."""
    longest: int | None = None
    """Positions of the longest that was measured."""

    def total(self, num_image_tokens: int, max_length: int) -> float:
        """Return positions of a sample, pictures included, at most `max_length`."""
        return min(self.text + self.pictures * num_image_tokens, float(max_length))


KNOWN = {
    # Counts of the files of the original's recipes. Lengths: the text beside the pictures that the project's
    # measured 620 (captions) and 700-900 (conversations) positions of a sample leave.
    "blip_laion_cc_sbu_558k": Lengths(558_128, 44, 1.0, 42, "known data", 0.03),
    "llava_v1_5_mix665k": Lengths(665_298, 258, 0.94, 110, "known data", 0.35),
    "llava_instruct_158k": Lengths(157_712, 300, 1.0, 150, "known data", 0.3),
    "llava_instruct_80k": Lengths(80_000, 300, 1.0, 150, "known data", 0.3),
}


def find_lengths(
    config: TrainConfig,
    shapes: Shapes,
    *,
    num_samples: int | None = None,
    text: float | None = None,
) -> Lengths:
    """Return a run's lengths; `num_samples` and `text` tokens win over what is found.

    Raises ConfigError, that says what to give, when nothing is known of the data.
    """
    found = _measured(config, shapes) or _known(config)
    if found is None and num_samples is None:
        raise ConfigError(
            f"{config.data.path or config.data.meta} is not on this machine, and nothing is known of it",
            remedy="Give --samples N (and --tokens N, text tokens of a sample).",
        )
    if found is None:
        pictures = 1.0 if shapes.tower is not None else 0.0
        found = Lengths(0, 150, pictures, 75, "stated" if text else "150 text tokens a sample assumed")
    if text is not None:
        share = min(1.0, found.targets / found.text) if found.text else 0.5
        found = replace(found, text=text, targets=text * share, source=f"{found.source}, --tokens")
    if num_samples is not None:
        found = replace(found, num_samples=num_samples, source=f"{found.source}, --samples")
    return found


def _known(config: TrainConfig) -> Lengths | None:
    paths = [part.strip() for part in (config.data.path or "").split(",")]
    found = [KNOWN.get(Path(path).stem) for path in paths]
    return found[0] if len(found) == 1 else None


def _measured(config: TrainConfig, shapes: Shapes) -> Lengths | None:
    """Tokenize samples evenly over the data, where data and tokenizer are here."""
    paths = (config.data.meta or config.data.path or "").split(",")
    if not all(Path(path.strip()).exists() for path in paths):
        return None
    folder = shapes.folder
    if folder is None or not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return None
    mixture = open_data(config.data)
    encoder = _encoder(config, shapes, folder)
    rows = []
    step = max(1, len(mixture) // NUM_MEASURED)
    for index in range(0, len(mixture), step):
        try:
            sample = encoder.encode(mixture[index])
        except DataError:
            continue  # the doctor names it; here a mean is wanted
        rows.append((sample.num_tokens, sample.num_targets, sample.input_ids.count(IMAGE_TOKEN_INDEX)))
    if not rows:
        return None
    count = len(rows)
    totals, targets, pictures = (sum(row[column] for row in rows) / count for column in range(3))
    variance = sum((row[0] - totals) ** 2 for row in rows) / count
    return Lengths(
        num_samples=mixture.samples_per_epoch,
        text=totals - pictures * shapes.num_image_tokens,
        pictures=pictures,
        targets=targets,
        source=f"{count} of {len(mixture)} samples measured",
        spread=math.sqrt(variance) / totals,
        longest=max(row[0] for row in rows),
    )


def _encoder(config: TrainConfig, shapes: Shapes, folder: Path) -> SampleEncoder:
    has_pictures = shapes.tower is not None
    data = config.data
    return SampleEncoder(
        training_tokenizer(folder, config.model.template, data.max_length),
        template_of(config.model.template),
        ImageProcessor(clip_rules(shapes.image_size)) if has_pictures else None,
        shapes.num_image_tokens,
        max_length=data.max_length,
        im_start_end=bool(shapes.language.get("mm_use_im_start_end")),
        truncation=data.truncation,
        has_pictures=has_pictures,
    )
