"""Pictures of the web page: its modes, their way to a worker, and what the model sees of them.

Between the browser's upload and a request. Source: `image_process_mode` of the original's
`gradio_web_server.py` and `Conversation.get_images`; sizes are (width, height) in pixels.
"""

from __future__ import annotations

from typing import Final, Literal, cast, get_args

from PIL import Image

from llava.conversation import process_picture
from llava.errors import ConfigError
from llava.processing.image_rules import ImageRules
from llava.processing.images import to_rgb
from llava.processing.resampling import resize_and_crop

PictureMode = Literal["Default", "Crop", "Pad", "Resize"]
MODES: Final = get_args(PictureMode)
MAX_LONG_EDGE: Final = 1344
"""LLaVA's: a picture with a longer edge is made smaller before it travels."""
MAX_SHORT_EDGE: Final = 672


def check_mode(mode: str) -> PictureMode:
    """Return `mode`; raises ConfigError naming the closest one that there is."""
    if mode not in MODES:
        raise ConfigError.of_field("picture mode", mode, MODES)
    return cast("PictureMode", mode)


def prepare(image: Image.Image, mode: PictureMode = "Default") -> Image.Image:
    """Return the RGB picture that is sent to a model: the mode applied, then no edge over MAX_LONG_EDGE.

    Default and Crop leave it as it is, Pad makes it square with CLIP's mean colour, Resize squashes it to
    336 x 336.
    """
    return _shrink(process_picture(to_rgb(image), check_mode(mode)))


def _shrink(image: Image.Image) -> Image.Image:
    long, short = max(image.size), min(image.size)
    if long <= MAX_LONG_EDGE:
        return image
    ratio = long / short
    short = max(1, int(min(MAX_LONG_EDGE / ratio, MAX_SHORT_EDGE, short)))
    long = int(short * ratio)
    return image.resize((short, long) if image.height > image.width else (long, short))


def preview(image: Image.Image, rules: ImageRules, mode: PictureMode = "Default") -> Image.Image:
    """Return what a model with these rules sees of the picture: RGB, `rules.size` pixels square.

    Raises ImageError for an empty picture and ImageLimitError for one too long to be resized.
    """
    return resize_and_crop(prepare(image, mode), rules)
