"""From the original's command line to a `TrainConfig`: every flag of it, and this project's own.

Values are spelled as transformers' HfArgumentParser takes them: `--x y` and `--x=y`; a switch alone means
True, and `--no_x` False. Defaults are those of the original and of transformers 4.37.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llava.command import nearest, note
from llava.errors import UsageError
from llava.train.config import TrainConfig
from llava.train.options import FALSE, TRUE, assemble, from_text, options
from llava.train.original_flags import flags, short_names
from llava.train.training_arguments import Flag
from llava.train.translation import TRANSLATED, translate

Given = dict[str, str]

DEFAULTS: Mapping[str, Any] = {
    "model.im_patch_token": True,
    "data.max_length": 512,
    "data.num_workers": 0,
    "optimizer.lr": 5e-5,
    "optimizer.schedule": "linear",
    "optimizer.warmup_ratio": 0.0,
    "run.epochs": 3.0,
    "run.micro_batch": 8,
    "run.accumulation": 1,
    "run.save_limit": None,
    "run.logging_steps": 500,
    "run.precision": "float32",
}
"""Where the original's default is not a recipe's."""


def parse_original(
    argv: Sequence[str], *, default_version: str = "v0", on_notice: Callable[[str], None] = note
) -> TrainConfig:
    """Return the run that the original's command line means.

    default_version: `--version` where it is not given; the original's mixture trainer knows only v1.
    on_notice: is told, in one line each, which flags have no effect and what differs from the original.
    Raises UsageError for an unknown flag (naming the nearest), for one without a value, and for one that
    would change the result and is not supported; ConfigError for a value that an option cannot have.
    """
    given = read_flags(argv)
    used: Given = {}
    for name, text in given.items():
        flag = flags()[name]
        if flag.effect == "used":
            used[name] = text
        elif text.lower() not in flag.fine:
            _complain(flag, text, on_notice)
    _require(used)
    used.setdefault("version", default_version)
    values = {**DEFAULTS, **translate(used, on_notice), **_own_options(used)}
    return assemble(values)


def read_flags(argv: Sequence[str]) -> Given:
    """Return the value of each flag given, by its name, as text; switches as "true" or "false".

    Raises UsageError for a flag that is not known or has no value, and for a word that belongs to no flag.
    """
    given: Given = {}
    words = list(argv)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            raise UsageError(f"argument {word} belongs to no flag", remedy="Flags are written --NAME VALUE.")
        written, equals, value = word[2:].partition("=")
        flag, is_negated = _flag_of(written)
        values = [value] if equals else []
        limit = 0 if equals or is_negated else len(words) if flag.kind == "list" else 1
        while len(values) < limit and position < len(words) and not words[position].startswith("--"):
            values.append(words[position])
            position += 1
        given[flag.name] = _text_of(flag, values, is_negated)
    return given


def _flag_of(written: str) -> tuple[Flag, bool]:
    """Return the flag written as `written`, and whether it is negated ("no_tf32")."""
    known = flags()
    name = written.replace("-", "_")
    if name in known:
        return known[name], False
    if name.startswith("no_") and name[3:] in known and known[name[3:]].kind == "switch":
        return known[name[3:]], True
    raise UsageError(
        f"flag --{written} is not known",
        remedy=f"{nearest(f'--{name}', (f'--{flag}' for flag in known))}docs/training.md lists all flags.",
    )


def _text_of(flag: Flag, values: list[str], is_negated: bool) -> str:
    if flag.kind == "switch":
        text = "false" if is_negated else values[0].lower() if values else "true"
        if flag.name == "resume_from_checkpoint" or text in (*TRUE, *FALSE):
            return "true" if text in TRUE else "false" if text in FALSE else text
        raise UsageError(f"--{flag.name} is {values[0]!r}", remedy="It is True or False.")
    if not values and flag.kind != "list":
        raise UsageError(f"--{flag.name} has no value", remedy=f"Write --{flag.name} VALUE.")
    text = ",".join(values) if flag.kind == "list" else values[0]
    if flag.kind in ("int", "float"):
        _check_number(flag, text)
    return text


def _check_number(flag: Flag, text: str) -> None:
    if flag.effect != "used" and text.lower() in ("none", ""):
        return
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"--{flag.name} is {text!r}", remedy="It is a number.") from None
    if flag.kind == "int" and not number.is_integer():
        raise UsageError(f"--{flag.name} is {text!r}", remedy="It is a whole number.")


def _complain(flag: Flag, text: str, on_notice: Callable[[str], None]) -> None:
    if flag.effect == "refused":
        raise UsageError(
            f"--{flag.name} {text} would change the result and is not supported: {flag.text}",
            remedy=f"Leave --{flag.name} out.",
        )
    on_notice(f"warning: --{flag.name} {text} has no effect: {flag.text}")


def _require(used: Given) -> None:
    """Raise UsageError where the flags name no model, no data or no place for the result."""
    for names, what in (
        (("model_name_or_path", "model.path"), "a language model or checkpoint to train"),
        (("output_dir", "run.output_dir"), "a folder for the result"),
        (("data_path", "meta_path", "data.path", "data.meta"), "training data"),
    ):
        if not any(used.get(name) for name in names):
            raise UsageError(f"--{names[0]} is missing", remedy=f"It names {what}.")
    if used.get("data_path") and used.get("meta_path"):
        raise UsageError("--data_path and --meta_path are both given", remedy="Leave one of them out.")


def _own_options(used: Given) -> dict[str, Any]:
    """Return the values of this project's own flags: they win over the original's."""
    values = {}
    for name, text in used.items():
        path = short_names().get(name, name)
        if path in options() and name not in TRANSLATED:
            values[path] = from_text(options()[path], text, source=f"--{name}")
    return values
