"""Which models the page offers, in which order, and when it asks for them again.

Source: `--model-list-mode` of the original's web server. `once` keeps the first list that names a model,
`reload` asks whenever a page is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Literal, get_args

from llava.errors import ConfigError

ModelListMode = Literal["once", "reload"]
MODES: Final = get_args(ModelListMode)
_FIRST: Final = ("internvl-chat", "vicuna-13b", "koala-13b")
"""Both forks' favourites: InternVL's own chat models, then LLaVA's two."""


def sort_models(names: Iterable[str]) -> list[str]:
    """Return each name once: InternVL-Chat's newest version first, then vicuna-13b, koala-13b, then A to Z.

    Numbers within names are compared as numbers. The original shuffled; this order is always the same.
    """
    rest = sorted(set(names), key=lambda name: (_natural(name), name))
    newest_first = [name for name in reversed(rest) if name.lower().startswith(_FIRST[0])]
    named = [name for first in _FIRST[1:] for name in rest if name.lower() == first]
    return [*newest_first, *named, *(name for name in rest if name not in {*newest_first, *named})]


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", name.lower())
    return [(0, int(part), "") if number % 2 else (1, 0, part) for number, part in enumerate(parts)]


def choose_model(
    names: Sequence[str], *, wanted: str | None = None, current: str | None = None
) -> str | None:
    """Return the model to select: the one in the address, else the one selected, else the first."""
    return next((name for name in (wanted, current) if name in names), names[0] if names else None)


class ModelList:
    """The list of a page server; `fetch` asks the controller or the engines, and may raise."""

    def __init__(self, fetch: Callable[[], Awaitable[Iterable[str]]], *, mode: str = "once") -> None:
        if mode not in MODES:
            raise ConfigError.of_field("model-list-mode", mode, MODES)
        self._fetch = fetch
        self._mode = mode
        self.names: list[str] = []
        """As of the last answer."""

    async def on_page_load(self) -> list[str]:
        """Return the list for a page that is being loaded; raises what `fetch` raises."""
        if self._mode == "reload" or not self.names:
            self.names = sort_models(await self._fetch())
        return self.names
