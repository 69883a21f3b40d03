"""Whether a checkpoint is of the run that wants to go on from it."""

from __future__ import annotations

from typing import Any

from llava.errors import ConfigError, DataError
from llava.log import get_logger
from llava.train.checkpoints import Saved
from llava.train.config import TrainConfig
from llava.train.options import nested

_logger = get_logger(__name__)

_DECIDES_WEIGHTS = ("model", "data", "stage", "optimizer")
"""Sections that a run cannot go on with when they change, but for the fields below."""
_MAY_CHANGE = {
    *("data.num_workers", "data.validation", "data.path", "data.meta", "data.image_folder"),
    "model.attn_implementation",
}
"""Of those, what moves no weight: where the same samples lie is checked by their hash."""


def check_same_run(saved: Saved, config: TrainConfig, fingerprint: str) -> None:
    """Raise when a checkpoint is of another run.

    fingerprint: of the data. Raises DataError for other data, ConfigError for options that decide the weights
    and have another value; other changes are logged.
    """
    if saved.info["data"] != fingerprint:
        raise DataError(
            f"the data is not what {saved.folder} was trained on",
            remedy="Restore it, or start anew with another run.output_dir (or run.resume false).",
        )
    old, new = _flat(saved.info["config"]), _flat(nested(config))
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    fatal = [name for name in changed if name.split(".")[0] in _DECIDES_WEIGHTS and name not in _MAY_CHANGE]
    if fatal:
        name = fatal[0]
        raise ConfigError(
            f"{name} is {new.get(name)!r}, and {saved.folder} was trained with {old.get(name)!r}",
            remedy="Use the same value, or another run.output_dir (or run.resume false).",
        )
    for name in changed:
        _logger.info("%s was %r and is now %r", name, old.get(name), new.get(name))


def _flat(sections: Any) -> dict[str, Any]:
    """Return {"section.field": value}."""
    return {
        f"{section}.{name}": value
        for section, fields in sections.items()
        if isinstance(fields, dict)
        for name, value in fields.items()
    }
