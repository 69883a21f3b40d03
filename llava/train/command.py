"""`llava train RECIPE`: train a model as a recipe says; every option of it can be overridden.

The recipe is a YAML file (recipes/ has those of the original's scripts). --dry-run prints what would be run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import EXIT_OK, note, say
from llava.lazy import import_large
from llava.train.args import parse_original, read_flags
from llava.train.batch_sizes import derive_batches
from llava.train.config import TrainConfig
from llava.train.launching import Launch, is_first, keep_log, run_processes, world_size_of
from llava.train.options import Option, nested, options
from llava.train.original_flags import flags
from llava.train.precision import settle_precision
from llava.train.recipe import dump_recipe, load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: the recipe, how to start it, and one option for each field of a run."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "llava train RECIPE [--dry-run [--json]] [--nproc N] [--log] [--SECTION.FIELD VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run: as JSON")
    parser.add_argument("--log", action="store_true", help="append all output to OUTPUT_DIR/train.log too")
    parser.add_argument("--debug", action="store_true", help="log more")
    starting = parser.add_argument_group("starting several processes")
    for field in dataclasses.fields(Launch):
        kind = str if field.name == "master_addr" else int
        metavar = "NAME" if kind is str else "N"
        starting.add_argument(
            f"--{field.name}",
            type=kind,
            default=field.default,
            metavar=metavar,
            help=_LAUNCH_HELP[field.name],
        )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options().values():
        section = option.path.partition(".")[0] if "." in option.path else "run"
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} (section of the recipe)")
        groups[section].add_argument(
            f"--{option.path}",
            nargs="?" if option.is_switch else None,
            const="true" if option.is_switch else None,
            default=argparse.SUPPRESS,
            metavar=option.metavar,
            help=_help_of(option),
        )


_LAUNCH_HELP = {
    "nproc": "processes on this machine (%(default)s)",
    "nnodes": "machines (%(default)s)",
    "node_rank": "which machine this is, from 0 (%(default)s)",
    "master_addr": "name of machine 0, for several machines",
    "master_port": "its port (default: free, or 29500 for several machines)",
}


def _help_of(option: Option) -> str:
    default = "none" if option.default is None else option.default
    shown = str(default).lower() if option.is_switch else default
    return f"{option.help} ({shown})".strip().replace("%", "%%")


def run(args: argparse.Namespace) -> int:
    """Train as told, in this process or in several; returns the exit code."""
    overrides = {path: text for path, text in vars(args).items() if path in options()}
    launch = Launch(args.nproc, args.nnodes, args.node_rank, args.master_addr, args.master_port)
    config = load_recipe(args.recipe, overrides)
    world_size = launch.world_size if launch.world_size > 1 else world_size_of(os.environ)
    if args.dry_run:
        say(describe(config, world_size, as_json=args.json), end="")
        return EXIT_OK
    derive_batches(config, world_size)
    if args.log and is_first(os.environ):
        keep_log(_log_path(config, launch))
    if launch.world_size > 1:
        given = [f"--{path}={text}" for path, text in overrides.items()]
        return run_processes(launch, [sys.executable, "-m", "llava.cli", "train", args.recipe, *given])
    return start(config)


def describe(config: TrainConfig, world_size: int, *, as_json: bool = False) -> str:
    """Return a run in full: as a recipe with the batch arithmetic as a comment above, or as JSON.

    world_size: processes. Raises ConfigError when the batch sizes do not multiply.
    """
    batches = derive_batches(config, world_size)
    if as_json:
        value = {"config": nested(config), "world_size": world_size, "batches": batches._asdict()}
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return f"# {batches.arithmetic(world_size)}\n{dump_recipe(config)}"


def train_original(
    argv: Sequence[str] | None = None,
    *,
    attn_implementation: str | None = None,
    default_version: str = "v0",
) -> int:
    """Train as the original's command line says; returns the exit code.

    argv: the flags; None takes this process's.
    attn_implementation: as transformers names it, where the flags do not say; default_version: for --version.
    Raises LlavaError for what the user can mend.
    """
    argv = sys.argv[1:] if argv is None else argv
    speak = note if is_first(os.environ) else _be_silent
    if {"-h", "--help"} & set(argv):
        say(original_help())
        return EXIT_OK
    config = parse_original(argv, default_version=default_version, on_notice=speak)
    if config.model.attn_implementation is None and _can_use(attn_implementation):
        model = dataclasses.replace(config.model, attn_implementation=attn_implementation)
        config = dataclasses.replace(config, model=model)
    world_size = world_size_of(os.environ)
    if read_flags(argv).get("dry_run") == "true":
        say(describe(config, world_size), end="")
        return EXIT_OK
    return start(config)


def original_help() -> str:
    """Return one line for each of the original's flags: what it becomes, or why it has no effect."""
    lines = [
        "Flags of the original's trainer, written --NAME VALUE or --NAME=VALUE, and what they are here:",
        "",
    ]
    for flag in flags().values():
        effect = {"used": "", "none": "no effect: ", "refused": "not supported: "}[flag.effect]
        lines.append(f"  --{flag.name:<36} {effect}{flag.text}")
    return "\n".join([*lines, "", "`llava train --help` explains the options."])


def start(config: TrainConfig) -> int:
    """Train in this process, which torchrun or Slurm may have started as one of several."""
    trainer = import_large("llava.train.trainer")
    config = settle_precision(config, note if is_first(os.environ) else _be_silent)
    code: int = trainer.train(config)
    return code


def _log_path(config: TrainConfig, launch: Launch) -> Path:
    node = f".node{launch.node_rank}" if launch.node_rank else ""
    return Path(config.run.output_dir) / f"train{node}.log"


def _can_use(attn_implementation: str | None) -> bool:
    """Whether FlashAttention can be had; without it the default gives the same values."""
    if attn_implementation != "flash_attention_2":
        return attn_implementation is not None
    from importlib.util import find_spec

    import torch

    return find_spec("flash_attn") is not None and torch.cuda.is_available()


def _be_silent(_: str) -> None:
    """Another rank says it."""
