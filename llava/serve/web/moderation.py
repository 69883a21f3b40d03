"""Ask OpenAI whether a text breaks its rules; off unless `--moderate` is given.

Source: `violates_moderation` of the original's `llava/utils.py`: 5 seconds, and what cannot be asked counts
as not flagged. Here the text travels as JSON that a library writes, so quotes do not break it, and failures
are logged (without the text).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from llava.errors import ConfigError, DependencyError
from llava.log import get_logger

if TYPE_CHECKING:
    import httpx

MESSAGE: Final = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."
URL: Final = "https://api.openai.com/v1/moderations"
TIMEOUT_S: Final = 5.0
_logger = get_logger(__name__)


class Moderation:
    """Asks with the key of OPENAI_API_KEY; blocks its thread for at most some seconds."""

    def __init__(self, api_key: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise DependencyError.of_extra("httpx", "serve", "moderation") from None
        key = api_key or os.environ.get("OPENAI_API_KEY", "")
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                "moderation needs a key of OpenAI, and OPENAI_API_KEY has none",
                remedy="Set it, or leave --moderate out.",
            )
        self._client = httpx.Client(
            timeout=TIMEOUT_S, transport=transport, headers={"Authorization": f"Bearer {key}"}
        )

    def is_flagged(self, text: str) -> bool:
        """Return whether the text breaks the rules; a failure is logged and counts as no."""
        import httpx

        try:
            response = self._client.post(URL, json={"input": text})
            response.raise_for_status()
            flagged = response.json()["results"][0]["flagged"]
        except httpx.HTTPStatusError as error:
            _logger.warning("moderation was refused with status %s", error.response.status_code)
            return False
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            _logger.warning("moderation failed: %s", type(error).__name__)
            return False
        return flagged is True

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
