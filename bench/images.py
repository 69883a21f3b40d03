"""How fast pictures become pixel values, against transformers' own PIL processor.

Run as `python -m bench.images`. Both make the same numbers (checked here to the bit). The two take turns on
the same picture, so that a busy machine hurts them alike; medians are compared. One thread, as in a worker of
a data loader.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.processing.images import load_image
from llava.processing.pixels import ImageProcessor, ImageRules, clip_rules, imagenet_rules

SIZES = (
    (640, 480),
    (480, 640),
    (1024, 768),
    (336, 336),
    (1920, 1080),
    (3000, 2000),
    (1200, 200),
    (200, 1200),
    (500, 8000),
)
RULES = (
    ("CLIP 336 pad", clip_rules(336)),
    ("CLIP 336 square", clip_rules(336, aspect="square")),
    ("InternViT 448 pad", imagenet_rules(448)),
)


def photo_like(width: int, height: int) -> Image.Image:
    """Return a picture with the smoothness of a photo, so that JPEG decoding takes a usual time."""
    generator = np.random.default_rng(width * 7919 + height)
    grain = Image.fromarray(generator.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
    return grain.filter(ImageFilter.GaussianBlur(2)).resize((width, height), Image.Resampling.BICUBIC)


def reference_of(rules: ImageRules) -> LlavaImageProcessorPil:
    """Return transformers' processor with the same rules."""
    fields = rules.to_preprocessor_config()
    fields.pop("image_processor_type")
    return LlavaImageProcessorPil(**fields)


def medians_ms(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Time the calls in turn, `repeats` times over, and return each one's median in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, record in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            record.append((time.perf_counter() - started) * 1e3)
    return [statistics.median(record) for record in times]


def main() -> None:
    """Print one line for each rule and size, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="rounds per picture")
    parser.add_argument("--decode", action="store_true", help="count the decoding of a JPEG as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'rules':18} {'picture':>11} {'ours ms':>9} {'transformers ms':>16} {'faster':>8}")
    ratios = []
    for name, rules in RULES:
        ours, theirs = ImageProcessor(rules), reference_of(rules)
        for width, height in SIZES:
            image = photo_like(width, height)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90)
            data = stream.getvalue()

            def our_call(
                image: Image.Image = image, data: bytes = data, ours: ImageProcessor = ours
            ) -> object:
                return ours([load_image(data) if args.decode else image])

            def their_call(
                image: Image.Image = image, data: bytes = data, theirs: LlavaImageProcessorPil = theirs
            ) -> object:
                picture = Image.open(io.BytesIO(data)).convert("RGB") if args.decode else image
                return theirs(picture, return_tensors="pt")["pixel_values"]

            if not torch.equal(our_call(), their_call()):  # type: ignore[arg-type]
                raise SystemExit(f"{name}, {width} x {height}: the pixel values differ")
            mine, other = medians_ms((our_call, their_call), args.repeats)
            ratios.append(other / mine)
            print(f"{name:18} {width:>5}x{height:<5} {mine:9.2f} {other:16.2f} {other / mine:7.2f}x")
    print(
        f"median ratio {statistics.median(ratios):.2f}x, smallest {min(ratios):.2f}x; all pixel values equal"
    )


if __name__ == "__main__":
    main()
