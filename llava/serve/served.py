"""The models of a server, by name: each has an engine and a queue of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from llava.errors import NotFoundError, UnavailableError, UsageError
from llava.serve.request_queue import QueueOptions, RequestQueue

if TYPE_CHECKING:
    from llava.engine.protocol import Engine


class ServedModel(NamedTuple):
    """A model that answers."""

    name: str
    queue: RequestQueue
    created: int
    """When it was loaded, in seconds since 1970."""


class ServedModels:
    """Which models there are; filled while the server starts."""

    def __init__(self, options: QueueOptions | None = None) -> None:
        self._options = options or QueueOptions()
        self._models: dict[str, ServedModel] = {}

    def add(self, name: str, engine: Engine) -> None:
        """Serve `engine` as `name`; raises UsageError for a name that is taken."""
        if name in self._models:
            raise UsageError(f"two models are called {name}", remedy="Name one of them: NAME=PATH.")
        self._models[name] = ServedModel(name, RequestQueue(engine, self._options), int(time.time()))

    def get(self, name: str | None) -> ServedModel:
        """Return the model of a name, for None the first; raises NotFoundError, UnavailableError."""
        if not self._models:
            raise UnavailableError("no model is loaded yet", remedy="Try again in a moment.")
        if name is None:
            return next(iter(self))
        if name not in self._models:
            known = ", ".join(self._models)
            raise NotFoundError(f"there is no model {name[:100]!r}", remedy=f"There is: {known}.")
        return self._models[name]

    def __iter__(self) -> Iterator[ServedModel]:
        """Go over the models in the order they were added."""
        return iter(list(self._models.values()))

    def close(self) -> None:
        """End what runs, and free the engines."""
        for model in self:
            model.queue.close()
            model.queue.engine.close()
