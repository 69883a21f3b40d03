"""Recipes: YAML files with the sections and fields of `TrainConfig`.

    defaults: llava-v1.5-finetune.yaml    # another recipe, beside this one, whose values hold unless restated
    optimizer:
      lr: 2.0e-4

Values are checked against the dataclasses, and mistakes named with file and line. Nothing is read from the
environment: a recipe says all there is to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import ConfigError, DependencyError, FileError
from llava.files import read_text
from llava.train.config import TrainConfig
from llava.train.options import assemble, checked, from_text, nested, option_of, options

if TYPE_CHECKING:
    from yaml.nodes import Node

DEFAULTS_KEY = "defaults"


def load_recipe(path: Path | str, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """Return the run that a recipe describes.

    overrides: values by the option's path ("run.seed"), spelled as on the command line; they win.
    Raises FileError for a file that is missing or no YAML, ConfigError for a key or value that cannot be.
    """
    path = Path(path)
    values: dict[str, Any] = {"name": path.stem}
    values |= _values(path, including=())
    for name, text in (overrides or {}).items():
        values[name] = from_text(option_of(name, source="command line"), text, source=f"--{name}")
    config = assemble(values)
    _check_data(config, path)
    return config


def dump_recipe(config: TrainConfig) -> str:
    """Return a run as a recipe that states every option; `load_recipe` reads it back."""
    return str(_yaml().safe_dump(nested(config), sort_keys=False, allow_unicode=True, width=100))


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise DependencyError.of_extra("PyYAML", "train", "reading recipes") from None
    return yaml


def _values(path: Path, *, including: tuple[Path, ...]) -> dict[str, Any]:
    """Return the options that a recipe states, those of the recipes it builds on first."""
    if path in including:
        chain = " -> ".join(str(step) for step in (*including, path))
        raise ConfigError(f"recipes include each other: {chain}", remedy="Take one `defaults` line out.")
    values: dict[str, Any] = {}
    for key, node in _entries(_document(path), path):
        if key == DEFAULTS_KEY:
            base = _plain(node)
            if not isinstance(base, str):
                raise ConfigError(
                    f"{_where(path, node)}: defaults is {base!r}", remedy="It is a file's name."
                )
            values = _values(path.parent / base, including=(*including, path)) | values
        else:
            values |= dict(_options(key, node, path))
    return values


def _document(path: Path) -> Node | None:
    yaml = _yaml()
    try:
        return yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path} line {mark.line + 1} column {mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise FileError(f"{where} is not YAML: {problem}", remedy="Mend the line.") from None


def _options(key: str, node: Node, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (option's path, checked value) of one top-level entry."""
    sections = {name.partition(".")[0] for name in options() if "." in name}
    if key in sections:
        for name, inner in _entries(node, path):
            yield f"{key}.{name}", _value(f"{key}.{name}", inner, path)
    elif key in options():
        yield key, _value(key, node, path)
    else:
        tops = [*dict.fromkeys(name.partition(".")[0] for name in options()), DEFAULTS_KEY]
        raise ConfigError.of_field("section", key, tops, source=_where(path, node))


def _value(name: str, node: Node, path: Path) -> Any:
    where = _where(path, node)
    return checked(option_of(name, source=where), _plain(node), source=where)


def _entries(node: Node | None, path: Path) -> list[tuple[str, Node]]:
    """Return a mapping's entries; a key given twice is an error, which YAML itself would let pass."""
    if node is None:
        return []
    if not isinstance(node, _yaml().MappingNode):
        raise ConfigError(
            f"{_where(path, node)}: {_plain(node)!r} is no section", remedy="Write `field: value`."
        )
    entries: dict[str, Node] = {}
    for key_node, value_node in node.value:
        key = str(_plain(key_node))
        if key in entries:
            raise ConfigError(f"{_where(path, key_node)}: {key} is given twice", remedy="Take one out.")
        entries[key] = value_node
    return list(entries.items())


def _plain(node: Node) -> Any:
    loader = _yaml().SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _where(path: Path, node: Node) -> str:
    return f"{path} line {node.start_mark.line + 1}"


def _check_data(config: TrainConfig, path: Path) -> None:
    """Raise ConfigError for a run that names no model or no data, or two data."""
    if not config.model.path:
        raise ConfigError(
            f"model.path is not set in {path}", remedy="Name what is trained: --model.path PATH."
        )
    if (config.data.path is None) == (config.data.meta is None):
        how = "both set" if config.data.path else "both missing"
        raise ConfigError(f"data.path and data.meta are {how} in {path}", remedy="Give one of them.")
