"""llava.json: what our own checkpoints say about themselves beyond the original's config.json.

Written by `saving`, read by `checkpoint`. Prompt template, picture rules, the tower's configuration, and
where the model came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.files import read_json, write_json
from llava.processing.pixels import ImageRules

FILE_NAME = "llava.json"
FORMAT_VERSION = 1
_FIELDS = ("format_version", "template", "image", "vision_config", "base", "recipe", "parent")


@dataclass(frozen=True)
class Manifest:
    """The content of llava.json."""

    template: str | None
    """Name of the prompt template the model was trained with."""
    image: ImageRules
    """How pictures are made into pixel values."""
    vision_config: Mapping[str, Any]
    """The tower's own config.json, in the original's spelling."""
    base: str | None = None
    """The language model that training began with."""
    recipe: Mapping[str, Any] | None = None
    """How it was trained."""
    parent: str | None = None
    """The checkpoint that training began with."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "template": self.template,
            "image": self.image.to_dict(),
            "vision_config": dict(self.vision_config),
            "base": self.base,
            "recipe": None if self.recipe is None else dict(self.recipe),
            "parent": self.parent,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, source: str = FILE_NAME) -> Manifest:
        """Read what `to_dict` wrote; raises ConfigError for an unknown field, version or value."""
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"format_version is {version!r} in {source}, and {FORMAT_VERSION} is known here",
                remedy="Install the version of llava that wrote it, or a newer one.",
            )
        for name in fields:
            if name not in _FIELDS:
                raise ConfigError.of_field("field", name, _FIELDS, source=source)
        for name in ("image", "vision_config"):
            if not isinstance(fields.get(name), Mapping):
                raise ConfigError(f"{name} is missing in {source}", remedy="Save the checkpoint again.")
        return cls(
            template=fields.get("template"),
            image=ImageRules.from_dict(fields["image"]),
            vision_config=fields["vision_config"],
            base=fields.get("base"),
            recipe=fields.get("recipe"),
            parent=fields.get("parent"),
        )

    def write(self, folder: Path) -> None:
        """Write llava.json into `folder`."""
        write_json(folder / FILE_NAME, self.to_dict())


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, or None where there is no llava.json."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} is not a JSON object", remedy="Save the checkpoint again.")
    return Manifest.from_dict(content, source=str(path))
