"""From the addresses of pictures to pictures in memory, with a bound on what all requests hold together.

A decoded picture takes four bytes a pixel for as long as its answer runs: some hundred kilobytes that a
client sends can be a few hundred megabytes here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava.errors import ImageLimitError, ServerBusyError
from llava.processing.fetch import fetch_picture
from llava.processing.images import ImageLimits, load_image

if TYPE_CHECKING:
    from PIL.Image import Image

Fetch = Callable[[str, int], bytes]
_NUM_DECODING = 4
"""Pictures decoded at the same time: what one turns out to take is known only afterwards."""


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What pictures may cost."""

    allow_urls: bool = False
    """Whether pictures are fetched from the public internet."""
    max_images: int = 16
    """Of one request."""
    image: ImageLimits = field(default_factory=lambda: ImageLimits(max_bytes=32 << 20, max_pixels=40_000_000))
    """Of each picture."""
    max_pixels: int = 80_000_000
    """Of one request's pictures together."""
    max_held_pixels: int = 320_000_000
    """Of all requests together: 1.3 GB. Over it, requests with pictures are answered 429."""


class PictureMemory:
    """The pictures of all requests of a server."""

    def __init__(self, limits: PictureLimits, *, fetch: Fetch = fetch_picture) -> None:
        self.limits = limits
        self._fetch = fetch
        self._decoding = threading.Semaphore(_NUM_DECODING)
        self._lock = threading.Lock()
        self.num_pixels = 0
        """In memory now."""

    def load(self, url: str) -> Image:
        """Fetch and decode a picture; raises ImageError and its children."""
        is_data = url[:5].lower() == "data:"
        source = url if is_data else self._fetch(url, self.limits.image.max_bytes)
        with self._decoding:
            return load_image(source, limits=self.limits.image, allow_path=False)

    def take(self, num_pixels: int) -> None:
        """Count pixels as held; raises ServerBusyError where they are too many."""
        with self._lock:
            if self.num_pixels + num_pixels > self.limits.max_held_pixels:
                raise ServerBusyError("too many large pictures at once", remedy="Try again later.")
            self.num_pixels += num_pixels

    def give_back(self, num_pixels: int) -> None:
        """Count pixels as gone."""
        with self._lock:
            self.num_pixels -= num_pixels


class RequestPictures:
    """The pictures of one request, held from `load` until `release`."""

    def __init__(self, memory: PictureMemory, urls: Sequence[str]) -> None:
        self._memory = memory
        self._urls = urls
        self._lock = threading.Lock()
        self._num_pixels = 0
        self._is_released = False

    def load(self) -> list[Image]:
        """Return the decoded pictures; takes its time.

        Raises ImageError, ImageLimitError, ServerBusyError.
        """
        images = []
        for url in self._urls:
            image = self._memory.load(url)
            self._hold(image.width * image.height)
            images.append(image)
        return images

    def release(self) -> None:
        """The answer has ended, or nobody wants it any more."""
        with self._lock:
            self._is_released = True
            self._memory.give_back(self._num_pixels)
            self._num_pixels = 0

    def _hold(self, num_pixels: int) -> None:
        limit = self._memory.limits.max_pixels
        with self._lock:
            if self._num_pixels + num_pixels > limit:
                raise ImageLimitError(
                    f"the pictures have more than {limit / 1e6:g} million pixels together",
                    remedy="Send smaller ones.",
                )
            if self._is_released:
                return  # the answer was given up meanwhile, and its pictures go with it
            self._memory.take(num_pixels)
            self._num_pixels += num_pixels
