"""The fields of `TrainConfig` as options: their types, defaults and explanations, read from the dataclasses.

Recipes, the command line and the documents all ask here, so that a field is described once, in `config`.
Reading text and checking values follow the field's annotation.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llava.errors import ConfigError
from llava.train import config as config_module
from llava.train.config import TrainConfig

TRUE = ("true", "yes", "y", "t", "1", "on")
FALSE = ("false", "no", "n", "f", "0", "off")


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a training run."""

    path: str
    """Section and field, as "data.max_length"; a field of TrainConfig itself has no section."""
    hint: Any
    """Its annotation."""
    default: Any
    help: str
    """What its docstring says, on one line."""

    @property
    def name(self) -> str:
        """The field's name without its section."""
        return self.path.rpartition(".")[2]

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The alternatives of its annotation, None left out."""
        members = get_args(self.hint) if get_origin(self.hint) in (Union, UnionType) else (self.hint,)
        return tuple(member for member in members if member is not NoneType)

    @property
    def is_optional(self) -> bool:
        """Whether None is a value of it."""
        return self.kinds != (self.hint,)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values it may have where they are few; else nothing."""
        kind = self.kinds[0]
        return get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return self.kinds == (bool,)

    @property
    def metavar(self) -> str:
        """What stands for its value in a help text."""
        if self.choices:
            return "{" + ",".join(str(choice) for choice in self.choices) + "}"
        kind = self.kinds[0]
        if get_origin(kind) is dict:
            return "KEY=VALUE,..."
        if get_origin(kind) is tuple:
            return "A,B,..."
        return {bool: "BOOL", int: "N", float: "X"}.get(kind, "TEXT")


@functools.cache
def options() -> Mapping[str, Option]:
    """Return every option by its path, in the order of the dataclasses."""
    texts = _field_docs(inspect.getsource(config_module))
    default = TrainConfig()
    found: dict[str, Option] = {}
    for name, hint in get_type_hints(TrainConfig).items():
        value = getattr(default, name)
        if dataclasses.is_dataclass(value):
            owner = type(value)
            for inner, inner_hint in get_type_hints(owner).items():
                path = f"{name}.{inner}"
                found[path] = Option(path, inner_hint, getattr(value, inner), texts[owner.__name__, inner])
        else:
            found[name] = Option(name, hint, value, texts["TrainConfig", name])
    return found


def option_of(path: str, *, source: str = "") -> Option:
    """Return the option called `path`; raises ConfigError that names the nearest one."""
    known = options()
    if path not in known:
        cause = ConfigError.of_field("the option's name", path, known, source=source).remedy
        where = f"{source}: " if source else ""
        hint = cause.split("Allowed:")[0].strip()
        raise ConfigError(
            f"{where}{path} is no option of a training run",
            remedy=f"{hint} `llava train --help` lists them all.".strip(),
        )
    return known[path]


def from_text(option: Option, text: str, *, source: str = "") -> Any:
    """Return the value that `text` spells for an option; raises ConfigError for one it cannot have."""
    if option.is_optional and text.lower() in ("none", "null", ""):
        return None
    kind = option.kinds[0]
    if get_origin(kind) is tuple:
        return tuple(part for part in text.split(",") if part and part.lower() != "none")
    if get_origin(kind) is dict:
        return checked(option, _pairs(option, text), source=source)
    if option.choices:
        spelled = {str(choice): choice for choice in option.choices}
        return checked(option, spelled.get(text, text), source=source)
    if kind is bool:
        lower = text.lower()
        return checked(option, True if lower in TRUE else False if lower in FALSE else text, source=source)
    if kind in (int, float):
        return checked(option, _number(text), source=source)
    return text


def checked(option: Option, value: Any, *, source: str = "") -> Any:
    """Return `value` as the option's type; raises ConfigError naming option, value and what fits."""
    if value is None and option.is_optional:
        return None
    for kind in option.kinds:
        if option.choices:
            if value in option.choices and type(value) in {type(choice) for choice in option.choices}:
                return value
            allowed = [str(choice) for choice in option.choices]
            raise ConfigError.of_field(option.path, value, allowed, source=source)
        found = _as_kind(kind, value)
        if found is not None:
            return found
    where = f"{source}: " if source else ""
    raise ConfigError(f"{where}{option.path} is {value!r}", remedy=f"It takes {_wanted(option)}.")


def assemble(values: Mapping[str, Any]) -> TrainConfig:
    """Return the run that the given options make, all others at their defaults.

    values: checked values by the option's path.
    """
    default = TrainConfig()
    sections: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        if section:
            sections.setdefault(section, {})[name] = value
        else:
            own[name] = value
    parts = {name: dataclasses.replace(getattr(default, name), **given) for name, given in sections.items()}
    return dataclasses.replace(default, **parts, **own)


def flattened(config: TrainConfig) -> dict[str, Any]:
    """Return the value of every option by its path."""
    return {
        path: getattr(getattr(config, path.partition(".")[0]), option.name) if "." in path else config.name
        for path, option in options().items()
    }


def nested(config: TrainConfig) -> dict[str, Any]:
    """Return a run as plain values by section, as a recipe states them."""
    result: dict[str, Any] = {}
    for path, value in flattened(config).items():
        section, _, name = path.rpartition(".")
        plain = list(value) if isinstance(value, tuple) else value
        (result.setdefault(section, {}) if section else result)[name] = plain
    return result


def _field_docs(source: str) -> dict[tuple[str, str], str]:
    """Return the string under each annotated field of each class, by class and field; "" for none."""
    found: dict[tuple[str, str], str] = {}
    for owner in ast.parse(source).body:
        if not isinstance(owner, ast.ClassDef):
            continue
        for statement, following in zip(owner.body, [*owner.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = _string(following)
                found[owner.name, statement.target.id] = " ".join(text.split())
    return found


def _string(node: ast.stmt | None) -> str:
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return node.value.value
    return ""


def _number(text: str) -> int | float | str:
    """Return the number a text spells, and the text itself when it spells none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _pairs(option: Option, text: str) -> dict[str, str]:
    """Read "vision=last:4,projector=all"."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not middle for _, middle, _ in pairs):
        raise ConfigError(f"{option.path} is {text!r}", remedy="Write KEY=VALUE, several with commas.")
    return {key: value for key, _, value in pairs}


def _as_kind(kind: Any, value: Any) -> Any:
    """Return `value` as `kind`, or None where it is not one."""
    origin = get_origin(kind)
    if origin is tuple:
        is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return tuple(value) if is_list else None
    if origin is dict:
        is_map = isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)
        return value if is_map else None
    if kind is float:
        return _as_float(value)
    return value if type(value) is kind else None


def _as_float(value: Any) -> float | None:
    """Accept 1, 2.5 and, since YAML 1.1 takes 2e-5 for a text, numbers spelled out."""
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _wanted(option: Option) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    kinds: Iterable[str] = (
        words.get(kind, "names, as a list" if get_origin(kind) is tuple else "a map of names to texts")
        for kind in option.kinds
    )
    return " or ".join([*kinds, *(["none"] if option.is_optional else [])])
